-- Every write of the ledger. One call is one atomic step; ARGV: operation, clock, job id, ...
-- clock '' means the server's time (seconds); tests pass their own.

local op, clock, id = ARGV[1], ARGV[2], ARGV[3]
local ROOT = 'clipfleet:'
local ACTIVE, ENDED, JOBS = ROOT .. 'jobs:active', ROOT .. 'jobs:ended', ROOT .. 'jobs'
local KEEPER = ROOT .. 'housekeeper'
local JOB = ROOT .. 'job:' .. id
local OPEN, FAILURES = JOB .. ':open', JOB .. ':failures'
local KEEP_LEASED_S = 3600

local now
if clock == '' then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
else
  now = tonumber(clock)
end

local function stamp(seconds) return string.format('%.6f', seconds) end
local function get(name) return redis.call('HGET', JOB, name) end
local function number(name) return tonumber(get(name) or '0') end
local function chunk_key(no) return JOB .. ':chunk:' .. no end
local function jobs_in(collection) return JOBS .. ':in:' .. collection end
local function made_by(key) return ROOT .. 'idempotency:' .. key end
local function chunk_get(no, name) return redis.call('HGET', chunk_key(no), name) end

local function add_chunk(items, size, attempt)
  local no = redis.call('HINCRBY', JOB, 'chunks', 1)
  redis.call('HSET', chunk_key(no), 'items', items, 'size', size, 'attempt', attempt,
             'token', 0, 'sent', 0)
  redis.call('ZADD', OPEN, 0, no)
  return no
end

local function drop_chunk(no)
  redis.call('DEL', chunk_key(no))
  redis.call('ZREM', OPEN, no)
end

local function finish(state)
  redis.call('HSET', JOB, 'state', state, 'finished_at', stamp(now), 'waiting', '')
  redis.call('SREM', ACTIVE, id)
  redis.call('ZADD', ENDED, stamp(now), id)
end

local function settle()
  if get('state') ~= 'running' or get('planned') ~= '1' then return end
  if redis.call('ZCARD', OPEN) > 0 then return end
  local failed = number('failed')
  if get('error') ~= '' then
    finish('failed')
  elseif failed > 0 and number('done') + number('skipped') == 0 then
    redis.call('HSET', JOB, 'error', 'every image failed; the failures say why')
    finish('failed')
  else
    finish(failed > 0 and 'partial' or 'succeeded')
  end
end

local function holds(no, token) return chunk_get(no, 'token') == token end

-- Nobody holds it, and it is still at the attempt the caller saw.
local function is_free(no, attempt)
  local lease_until = redis.call('ZSCORE', OPEN, no)
  return lease_until and tonumber(lease_until) <= now and chunk_get(no, 'attempt') == attempt
end

local operations = {}

-- '!' and the reason when there is nothing to retry; the retry's id when one is going on already.
local function begin_retry(of)
  local old = ROOT .. 'job:' .. of
  local state = redis.call('HGET', old, 'state')
  if not state then return '!gone' end
  if redis.call('SISMEMBER', ACTIVE, of) == 1 then return '!running' end
  if redis.call('HGET', old, 'failed') == '0' then return '!nothing' end
  local by = redis.call('HGET', old, 'retried_by')
  if by and redis.call('SISMEMBER', ACTIVE, by) == 1 then return by end
  redis.call('HSET', old, 'retried_by', id)
end

function operations.create(fields, collection, retry_of, key, keep_key_s)
  local made = key ~= '' and redis.call('GET', made_by(key))
  if made then return made end
  if get('state') then return id end -- it was made, and the answer lost
  local instead = retry_of ~= '' and begin_retry(retry_of)
  if instead then return instead end
  if key ~= '' then redis.call('SET', made_by(key), id, 'EX', keep_key_s) end
  redis.call('HSET', JOB, 'new', fields, 'state', 'queued', 'created_at', stamp(now),
             'planned', 0, 'total', 0, 'estimated', 0, 'done', 0, 'failed', 0, 'skipped', 0,
             'chunks', 0, 'fence', 0, 'cursor', '', 'error', '', 'waiting', '',
             'planner', '', 'planner_until', 0, 'planner_token', 0,
             'collection', collection, 'retry_of', retry_of, 'key', key)
  redis.call('ZADD', JOBS, stamp(now), id)
  redis.call('ZADD', jobs_in(collection), stamp(now), id)
  redis.call('SADD', ACTIVE, id)
  return id
end

function operations.remove()
  if not get('state') then return 0 end
  for _, no in ipairs(redis.call('ZRANGE', OPEN, 0, -1)) do redis.call('DEL', chunk_key(no)) end
  redis.call('ZREM', JOBS, id)
  redis.call('ZREM', jobs_in(get('collection') or ''), id)
  redis.call('ZREM', ENDED, id)
  redis.call('SREM', ACTIVE, id)
  local made = made_by(get('key') or '')
  if redis.call('GET', made) == id then redis.call('DEL', made) end
  local old = ROOT .. 'job:' .. (get('retry_of') or '')
  if redis.call('HGET', old, 'retried_by') == id then redis.call('HDEL', old, 'retried_by') end
  redis.call('UNLINK', JOB, OPEN, FAILURES)
  return 1
end

function operations.keep_house(keeper, seconds)
  local holder = redis.call('HMGET', KEEPER, 'name', 'until')
  if holder[1] and holder[1] ~= keeper and tonumber(holder[2]) > now then return 0 end
  redis.call('HSET', KEEPER, 'name', keeper, 'until', stamp(now + tonumber(seconds)))
  return 1
end

function operations.ended(seconds_ago, limit)
  local last = stamp(now - tonumber(seconds_ago))
  return redis.call('ZRANGEBYSCORE', ENDED, '-inf', last, 'LIMIT', 0, limit)
end

function operations.lease(planner, seconds)
  local state = get('state')
  if state ~= 'queued' and state ~= 'running' then return nil end
  local held = number('planner_until') > now
  if held and get('planner') ~= planner then return nil end
  if not held or get('planner') ~= planner then
    redis.call('HSET', JOB, 'planner', planner,
               'planner_token', redis.call('HINCRBY', JOB, 'fence', 1))
  end
  redis.call('HSET', JOB, 'planner_until', stamp(now + tonumber(seconds)))
  if state == 'queued' then
    redis.call('HSET', JOB, 'state', 'running', 'started_at', stamp(now))
  end
  return {get('planner_token'), get('cursor'), get('planned')}
end

function operations.estimate(images)
  if get('state') then redis.call('HSET', JOB, 'estimated', images) end
end

local function may_plan(token)
  return get('state') == 'running' and get('planner_token') == token and get('planned') == '0'
end

function operations.plan(token, items, size, after, cursor)
  if not may_plan(token) or get('cursor') ~= after then return nil end
  redis.call('HINCRBY', JOB, 'total', size)
  redis.call('HSET', JOB, 'cursor', cursor)
  return add_chunk(items, size, 0)
end

function operations.end_plan(token, error)
  if not may_plan(token) then return 0 end
  redis.call('HSET', JOB, 'planned', 1, 'error', error)
  settle()
  return 1
end

function operations.open()
  local rows = {}
  local open = redis.call('ZRANGE', OPEN, 0, -1, 'WITHSCORES')
  for i = 1, #open, 2 do
    local no, lease_until = open[i], tonumber(open[i + 1])
    local chunk = redis.call('HMGET', chunk_key(no), 'size', 'attempt', 'sent', 'suspect')
    if chunk[1] then
      local sent = tonumber(chunk[3])
      rows[#rows + 1] = {no, chunk[1], chunk[2], lease_until > 0 and 1 or 0,
                         lease_until <= now and 1 or 0,
                         sent > 0 and stamp(now - sent) or 'inf', chunk[4] or ''}
    end
  end
  return rows
end

function operations.sent(no)
  local lease_until = redis.call('ZSCORE', OPEN, no)
  if not lease_until then return end
  if tonumber(lease_until) <= now then redis.call('ZADD', OPEN, 0, no) end
  redis.call('HSET', chunk_key(no), 'sent', stamp(now))
end

function operations.split(no, attempt, left, left_size, left_attempt,
                          right, right_size, right_attempt)
  if get('state') ~= 'running' or not is_free(no, attempt) then return 0 end
  drop_chunk(no)
  add_chunk(left, left_size, left_attempt)
  add_chunk(right, right_size, right_attempt)
  return 1
end

function operations.bury(no, attempt, failure)
  if get('state') ~= 'running' or not is_free(no, attempt) then return 0 end
  drop_chunk(no)
  redis.call('RPUSH', FAILURES, failure)
  redis.call('HINCRBY', JOB, 'failed', 1)
  settle()
  return 1
end

-- `ask` is one per claim: a command sent again because its answer was lost gets the same answer.
function operations.claim(no, worker, seconds, ask)
  if get('state') ~= 'running' then return 'closed' end
  local lease_until = redis.call('ZSCORE', OPEN, no)
  if not lease_until then return 'done' end
  if tonumber(lease_until) > now then
    if chunk_get(no, 'ask') ~= ask then return 'held' end
    return {chunk_get(no, 'token'), chunk_get(no, 'attempt'), chunk_get(no, 'items')}
  end
  local token = redis.call('HINCRBY', JOB, 'fence', 1)
  local attempt = redis.call('HINCRBY', chunk_key(no), 'attempt', 1)
  redis.call('HSET', chunk_key(no), 'token', token, 'worker', worker, 'ask', ask)
  redis.call('HDEL', chunk_key(no), 'suspect')
  redis.call('ZADD', OPEN, stamp(now + tonumber(seconds)), no)
  return {token, attempt, chunk_get(no, 'items')}
end

function operations.renew(no, token, seconds)
  if get('state') ~= 'running' or not holds(no, token) then return 0 end
  redis.call('ZADD', OPEN, stamp(now + tonumber(seconds)), no)
  return 1
end

function operations.suspect(no, token, index)
  if not holds(no, token) then return 0 end
  redis.call('HSET', chunk_key(no), 'suspect', index)
  return 1
end

function operations.mark(no, token, done, skipped, ...)
  if not holds(no, token) then return 0 end
  local failures = {...}
  redis.call('HINCRBY', JOB, 'done', done)
  redis.call('HINCRBY', JOB, 'skipped', skipped)
  redis.call('HINCRBY', JOB, 'failed', #failures)
  for _, failure in ipairs(failures) do redis.call('RPUSH', FAILURES, failure) end
  redis.call('HSET', JOB, 'waiting', '')
  drop_chunk(no)
  settle()
  return 1
end

function operations.release(no, token, count_attempt)
  if not holds(no, token) then return 0 end
  if get('state') ~= 'running' then
    drop_chunk(no)
    return 1
  end
  if count_attempt == '0' then redis.call('HINCRBY', chunk_key(no), 'attempt', -1) end
  redis.call('HSET', chunk_key(no), 'token', 0, 'sent', 0)
  redis.call('ZADD', OPEN, 0, no)
  return 1
end

function operations.cancel(reason)
  local state = get('state')
  if state ~= 'queued' and state ~= 'running' then return 0 end
  local open = redis.call('ZRANGE', OPEN, 0, -1, 'WITHSCORES')
  for i = 1, #open, 2 do
    if tonumber(open[i + 1]) <= now then
      drop_chunk(open[i])
    else -- its holder may still mark it
      redis.call('EXPIRE', chunk_key(open[i]), KEEP_LEASED_S)
    end
  end
  redis.call('EXPIRE', OPEN, KEEP_LEASED_S)
  redis.call('HSET', JOB, 'error', reason, 'planned', 1)
  finish('cancelled')
  return 1
end

function operations.note(waiting)
  if get('state') == 'running' then redis.call('HSET', JOB, 'waiting', waiting) end
end

return operations[op](unpack(ARGV, 4))
