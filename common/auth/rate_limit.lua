-- Takes one request from a bucket that holds `limit` requests and fills evenly within a minute.
-- KEYS: the bucket. ARGV: the limit; the clock in unix seconds, '' for the server's time.
-- Returns whether the request was taken, how many remain, the seconds until one remains, and the
-- seconds until the bucket is full.

local limit, now = tonumber(ARGV[1]), tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local per_second = limit / 60
local bucket = redis.call('HMGET', KEYS[1], 'left', 'at')
local remaining, at = tonumber(bucket[1] or limit), tonumber(bucket[2] or now)
remaining = math.min(limit, remaining + math.max(0, now - at) * per_second)
local taken = remaining >= 1 and 1 or 0
remaining = remaining - taken
redis.call('HSET', KEYS[1], 'left', string.format('%.9f', remaining), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], 61) -- it is full by then, as is a bucket that does not exist
return {taken, math.floor(remaining), string.format('%.6f', math.max(0, 1 - remaining) / per_second),
        string.format('%.6f', (limit - remaining) / per_second)}
