-- One request from a bucket that holds `most` and is filled up evenly within a minute.
-- KEYS: the bucket; ARGV: most, clock ('' means the server's time; tests pass their own).
-- Answers whether it was taken, how many are left, seconds until the next one is, and until full.

local most, now = tonumber(ARGV[1]), tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local a_second = most / 60
local kept = redis.call('HMGET', KEYS[1], 'left', 'at')
local left, at = tonumber(kept[1] or most), tonumber(kept[2] or now)
left = math.min(most, left + math.max(0, now - at) * a_second)
local taken = left >= 1 and 1 or 0
left = left - taken
redis.call('HSET', KEYS[1], 'left', string.format('%.9f', left), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], 61) -- by then it is full again, as one that is not there is
return {taken, math.floor(left), string.format('%.6f', math.max(0, 1 - left) / a_second),
        string.format('%.6f', (most - left) / a_second)}
