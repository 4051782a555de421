#!/bin/sh
# Writes .env for docker-compose.yml: .env.example with passwords of its own. Never overwrites one.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
    echo ".env is there already; nothing was changed" >&2
    exit 0
fi
mkdir -p images # what folder jobs may read, unless CLIPFLEET_IMAGES says another
umask 077
while read -r line; do
    case $line in
    *_PASSWORD=) line=$line$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n') ;;
    esac
    echo "$line"
done <.env.example >.env
echo "wrote .env; the password of Grafana and Flower is ADMIN_PASSWORD in it"
