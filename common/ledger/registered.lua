-- The registered sources of collections. One call is one atomic step.
--
-- ARGV: the operation, the time (unix seconds; '': Redis' own), and the operation's arguments.
-- Keys are computed: Redis Cluster is not supported.
--   RECORDS  hash: name -> JSON of the record
--   REVISIONS hash: name -> the revision of that record
--   KEYS_OF  sorted set: keys of events that wait, by the time of their first event
--   TAKEN    sorted set: the same, of keys that a run has taken
--   DUE      sorted set: "collection/name" -> when to look at the source
local ROOT, DUE = 'clipfleet:sources:', 'clipfleet:sources-due'

local function now()
  if ARGV[2] ~= '' then return tonumber(ARGV[2]) end
  local time = redis.call('TIME')
  return time[1] + time[2] / 1e6
end

local function text(seconds) return string.format('%.6f', seconds) end
local function records(collection) return ROOT .. collection end
local function revisions(collection) return ROOT .. collection .. ':revisions' end
local function waiting(collection, name) return ROOT .. collection .. ':' .. name .. ':keys' end
local function taken(collection, name) return ROOT .. collection .. ':' .. name .. ':taken' end

local function move(from, to, limit)
  local rows = redis.call('ZRANGE', from, 0, limit - 1, 'WITHSCORES')
  for index = 1, #rows, 2 do
    redis.call('ZADD', to, rows[index + 1], rows[index])
    redis.call('ZREM', from, rows[index])
  end
end

local operations = {}

-- before: the revision that the record must have; '': there must be no record.
function operations.save(collection, name, before, revision, raw, look_at, look_at_with_keys, keys,
    limit)
  if (redis.call('HGET', revisions(collection), name) or '') ~= before then return 0 end
  redis.call('HSET', records(collection), name, raw)
  redis.call('HSET', revisions(collection), name, revision)
  local queue, hand = waiting(collection, name), taken(collection, name)
  if keys == 'take' then move(queue, hand, tonumber(limit)) end
  if keys == 'drop' then redis.call('UNLINK', hand) end
  if keys == 'restore' then move(hand, queue, 1e9) end
  local at = tonumber(look_at)
  if redis.call('EXISTS', queue) == 1 then at = math.min(at, tonumber(look_at_with_keys)) end
  redis.call('ZADD', DUE, text(at), collection .. '/' .. name)
  return 1
end

function operations.remove(collection, name)
  redis.call('UNLINK', waiting(collection, name), taken(collection, name))
  redis.call('HDEL', revisions(collection), name)
  redis.call('ZREM', DUE, collection .. '/' .. name)
  return redis.call('HDEL', records(collection), name)
end

-- Returns how many keys wait then; -1: there is no such source, -2: too many would wait.
function operations.add(collection, name, limit, delay_s, many, ...)
  if redis.call('HEXISTS', records(collection), name) == 0 then return -1 end
  local queue, at = waiting(collection, name), now()
  if redis.call('ZCARD', queue) + #{...} > tonumber(limit) then return -2 end
  for _, key in ipairs({...}) do redis.call('ZADD', queue, 'NX', text(at), key) end
  local count, member = redis.call('ZCARD', queue), collection .. '/' .. name
  local look_at = count < tonumber(many) and at + delay_s or at
  local before = tonumber(redis.call('ZSCORE', DUE, member) or look_at)
  redis.call('ZADD', DUE, text(math.min(before, look_at)), member)
  return count
end

function operations.waiting(collection, name)
  local first = redis.call('ZRANGE', waiting(collection, name), 0, 0, 'WITHSCORES')
  return {redis.call('ZCARD', waiting(collection, name)), first[2] or '0', text(now())}
end

-- The sources to look at now. They are given to nobody else for `hold_s`. A source that is due later
-- than `longest_s` from now is due now: the clock was set back.
function operations.due(limit, hold_s, longest_s)
  local at = now()
  local beyond = '(' .. text(at + longest_s)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', DUE, beyond, '+inf', 'LIMIT', 0, limit)) do
    redis.call('ZADD', DUE, text(at), member)
  end
  local members = redis.call('ZRANGEBYSCORE', DUE, '-inf', text(at), 'LIMIT', 0, limit)
  for _, member in ipairs(members) do redis.call('ZADD', DUE, text(at + hold_s), member) end
  return members
end

return operations[ARGV[1]](unpack(ARGV, 3))
