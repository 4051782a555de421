-- Adds a part to an open upload, in one step.
-- KEYS: the record of the upload, the list of its parts, the digests of its images.
-- ARGV: the name of the part, its bytes, the limits of images and of bytes, then the primary key and
-- the digest of each image.
-- Returns {0}, or {what, number}: 1 when the upload is not open, 2 when it would have so many
-- images, 3 when it would have so many bytes.

local record, parts, digests = KEYS[1], KEYS[2], KEYS[3]
if redis.call('EXISTS', record) == 0 or redis.call('HGET', record, 'closed') then return {1, 0} end
local images, resent = redis.call('HLEN', digests), false
local bytes = tonumber(redis.call('HGET', record, 'bytes') or '0') + tonumber(ARGV[2])
for i = 5, #ARGV, 2 do
  if redis.call('HEXISTS', digests, ARGV[i]) == 1 then resent = true else images = images + 1 end
end
if images > tonumber(ARGV[3]) then return {2, images} end
if bytes > tonumber(ARGV[4]) then return {3, bytes} end
for i = 5, #ARGV, 2 do redis.call('HSET', digests, ARGV[i], ARGV[i + 1]) end
redis.call('RPUSH', parts, ARGV[1])
redis.call('HSET', record, 'bytes', string.format('%.0f', bytes))
if resent then redis.call('HSET', record, 'resent', 1) end
return {0, 0}
