-- Every write of the ledger. One call is one atomic step; ARGV: operation, clock, job id, ...
-- clock '' means the server's time (seconds); tests pass their own.

local op, clock = ARGV[1], ARGV[2]
local ROOT = 'clipfleet:'
local ACTIVE, ENDED, JOBS = ROOT .. 'jobs:active', ROOT .. 'jobs:ended', ROOT .. 'jobs'
local KEEPER = ROOT .. 'housekeeper'
local KEEP_LEASED_S = 3600
local MOST_REPLANS = 3

local id, JOB, OPEN, FAILURES -- of the job that an operation is about

local function use(job)
  id, JOB = job, ROOT .. 'job:' .. job
  OPEN, FAILURES = JOB .. ':open', JOB .. ':failures'
end
use(ARGV[3])

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
local function chunk_key(chunk) return JOB .. ':chunk:' .. chunk end
local function jobs_in(collection) return JOBS .. ':in:' .. collection end
local function made_by(key) return ROOT .. 'idempotency:' .. key end
local function chunk_get(chunk, name) return redis.call('HGET', chunk_key(chunk), name) end
local function ready_for(model, remote)
  return ROOT .. (remote == '1' and 'ready-remote:' or 'ready:') .. model
end
local function ask_key(token) return ROOT .. 'ask:' .. token end

local function is_remote(chunk) return chunk_get(chunk, 'remote') == '1' and '1' or '0' end

-- Which kinds of chunks are pending: '0' and '1' as `is_remote` says. A job without open remote
-- chunks is not searched. Scripts of older releases do not count them: the number may be too high.
local function pending_kinds()
  local has = {}
  if get('state') ~= 'running' or redis.call('ZCOUNT', OPEN, 0, 0) == 0 then return has end
  if number('open_remote') == 0 then
    has['0'] = true
    return has
  end
  for _, chunk in ipairs(redis.call('ZRANGEBYSCORE', OPEN, 0, 0)) do
    has[is_remote(chunk)] = true
    if has['0'] and has['1'] then break end
  end
  return has
end

-- A job lies in an index of its model as long as one of its chunks is pending: in one for remote
-- chunks, in one for all others. The job with the fewest chunks in hand comes first, then the one
-- that was served least recently. A chunk whose lease ran out counts as in hand until `requeue`: so
-- the order changes with a write only.
local function index()
  local model = get('model')
  if not model then return end -- of an older release: `lease` writes the field
  local has = pending_kinds()
  local in_hand = redis.call('ZCOUNT', OPEN, '(0', '+inf')
  local served_at = tonumber(get('served_at') or get('created_at'))
  for _, remote in ipairs({'0', '1'}) do
    if has[remote] then
      redis.call('ZADD', ready_for(model, remote), stamp(in_hand * 1e10 + served_at), id)
    else
      redis.call('ZREM', ready_for(model, remote), id)
    end
  end
end

-- The number orders a job's chunks. `unique` comes from the caller: when Redis forgets its last
-- second, a number comes again, and the whole name never does.
local function add_chunk(unique, items, size, attempt, remote)
  local no = redis.call('HINCRBY', JOB, 'chunks', 1)
  local chunk = string.format('%08d-%s', no, unique)
  redis.call('HSET', chunk_key(chunk), 'items', items, 'size', size, 'attempt', attempt,
             'token', '', 'remote', remote)
  if is_remote(chunk) == '1' then redis.call('HINCRBY', JOB, 'open_remote', 1) end
  redis.call('ZADD', OPEN, 0, chunk)
  return chunk
end

-- What `claim` keeps for a command that is sent again is of no use once the claim is over.
local function forget_claim(chunk)
  redis.call('DEL', ask_key(chunk_get(chunk, 'token') or ''))
end

local function drop_chunk(chunk)
  forget_claim(chunk)
  if is_remote(chunk) == '1' then redis.call('HINCRBY', JOB, 'open_remote', -1) end
  redis.call('DEL', chunk_key(chunk))
  redis.call('ZREM', OPEN, chunk)
end

local function keep_in_chunk(chunk, items, size, remote)
  redis.call('HINCRBY', JOB, 'open_remote', tonumber(remote) - tonumber(is_remote(chunk)))
  redis.call('HSET', chunk_key(chunk), 'items', items, 'size', size, 'remote', remote)
end

local function finish(state)
  redis.call('HSET', JOB, 'state', state, 'finished_at', stamp(now), 'waiting', '')
  redis.call('SREM', ACTIVE, id)
  redis.call('ZADD', ENDED, stamp(now), id)
end

-- What is in the store is skipped the second time, so a job can begin again at any moment.
local function replan()
  if redis.call('HINCRBY', JOB, 'replans', 1) > MOST_REPLANS then
    redis.call('HSET', JOB, 'error', 'its counts do not add up, however often it is planned')
    return finish('failed')
  end
  redis.call('DEL', FAILURES)
  redis.call('HSET', JOB, 'planned', 0, 'cursor', '', 'total', 0, 'done', 0, 'failed', 0,
             'skipped', 0, 'waiting', 'its counts do not add up; it is planned again from its start')
end

local function settle()
  if get('state') ~= 'running' or get('planned') ~= '1' then return end
  if redis.call('ZCARD', OPEN) > 0 then return end
  local failed, good = number('failed'), number('done') + number('skipped')
  if get('error') ~= '' then
    finish('failed')
  elseif failed + good ~= number('total') then
    replan()
  elseif failed > 0 and good == 0 then
    redis.call('HSET', JOB, 'error', 'every image failed; the failures say why')
    finish('failed')
  else
    finish(failed > 0 and 'partial' or 'succeeded')
  end
end

local function holds(chunk, token) return token ~= '' and chunk_get(chunk, 'token') == token end

-- Nobody holds it, and it is still at the attempt the caller saw.
local function is_free(chunk, attempt)
  local lease_until = redis.call('ZSCORE', OPEN, chunk)
  return lease_until and tonumber(lease_until) <= now and chunk_get(chunk, 'attempt') == attempt
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

function operations.create(fields, version, collection, model, retry_of, key, keep_key_s)
  local made = key ~= '' and redis.call('GET', made_by(key))
  if made then return made end
  if get('state') then return id end -- it was made, and the answer lost
  local instead = retry_of ~= '' and begin_retry(retry_of)
  if instead then return instead end
  if key ~= '' then redis.call('SET', made_by(key), id, 'EX', keep_key_s) end
  redis.call('HSET', JOB, 'new', fields, 'state', 'queued', 'created_at', stamp(now),
             'planned', 0, 'total', 0, 'estimated', 0, 'done', 0, 'failed', 0, 'skipped', 0,
             'chunks', 0, 'cursor', '', 'error', '', 'waiting', '',
             'planner', '', 'planner_until', 0, 'planner_token', '', 'version', version,
             'model', model, 'collection', collection, 'retry_of', retry_of, 'key', key)
  redis.call('ZADD', JOBS, stamp(now), id)
  redis.call('ZADD', jobs_in(collection), stamp(now), id)
  redis.call('SADD', ACTIVE, id)
  return id
end

function operations.remove()
  if not get('state') then return 0 end
  for _, chunk in ipairs(redis.call('ZRANGE', OPEN, 0, -1)) do drop_chunk(chunk) end
  redis.call('ZREM', JOBS, id)
  redis.call('ZREM', jobs_in(get('collection') or ''), id)
  redis.call('ZREM', ENDED, id)
  redis.call('SREM', ACTIVE, id)
  if get('model') then
    for _, remote in ipairs({'0', '1'}) do redis.call('ZREM', ready_for(get('model'), remote), id) end
  end
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

-- `ask` is one per call: the token when the job is leased anew. Of a job that an older release
-- made, the fields are written that `claim` needs.
function operations.lease(planner, seconds, ask)
  local state = get('state')
  if state ~= 'queued' and state ~= 'running' then return nil end
  local held = number('planner_until') > now
  if held and get('planner') ~= planner then return nil end
  if not held or get('planner') ~= planner then
    redis.call('HSET', JOB, 'planner', planner, 'planner_token', ask)
  end
  redis.call('HSET', JOB, 'planner_until', stamp(now + tonumber(seconds)))
  if state == 'queued' then
    redis.call('HSET', JOB, 'state', 'running', 'started_at', stamp(now))
  end
  if not get('model') then
    local new = cjson.decode(get('new'))
    redis.call('HSET', JOB, 'model', new.model, 'version', new.v or 1)
  end
  index()
  return {get('planner_token'), get('cursor'), get('planned')}
end

function operations.estimate(images)
  if get('state') then redis.call('HSET', JOB, 'estimated', images) end
end

local function may_plan(token)
  return get('state') == 'running' and get('planner_token') == token and get('planned') == '0'
end

function operations.plan(token, unique, items, size, remote, after, cursor)
  if not may_plan(token) or get('cursor') ~= after then return nil end
  redis.call('HINCRBY', JOB, 'total', size)
  redis.call('HSET', JOB, 'cursor', cursor)
  local chunk = add_chunk(unique, items, size, 0, remote)
  index()
  return chunk
end

function operations.end_plan(token, after, error)
  if not may_plan(token) or get('cursor') ~= after then return 0 end
  redis.call('HSET', JOB, 'planned', 1, 'error', error)
  settle()
  index()
  return 1
end

function operations.open()
  local rows = {}
  local open = redis.call('ZRANGE', OPEN, 0, -1, 'WITHSCORES')
  for i = 1, #open, 2 do
    local lease_until = tonumber(open[i + 1])
    local chunk = redis.call('HMGET', chunk_key(open[i]), 'size', 'attempt', 'suspect')
    if chunk[1] then
      rows[#rows + 1] = {open[i], chunk[1], chunk[2], lease_until > 0 and 1 or 0,
                         lease_until <= now and 1 or 0, chunk[3] or ''}
    end
  end
  return rows
end

-- A lease ran out: the chunk is pending again. A late holder may still mark it until it is claimed.
function operations.requeue(chunk, attempt)
  if get('state') ~= 'running' or not is_free(chunk, attempt) then return 0 end
  redis.call('ZADD', OPEN, 0, chunk)
  index()
  return 1
end

function operations.split(chunk, attempt, left_unique, left, left_size, left_attempt, left_remote,
                          right_unique, right, right_size, right_attempt, right_remote)
  if get('state') ~= 'running' or not is_free(chunk, attempt) then return 0 end
  local since = chunk_get(chunk, 'since') or stamp(now)
  drop_chunk(chunk)
  for _, part in ipairs({add_chunk(left_unique, left, left_size, left_attempt, left_remote),
                         add_chunk(right_unique, right, right_size, right_attempt, right_remote)}) do
    redis.call('HSET', chunk_key(part), 'since', since)
  end
  index()
  return 1
end

function operations.bury(chunk, attempt, failure)
  if get('state') ~= 'running' or not is_free(chunk, attempt) then return 0 end
  drop_chunk(chunk)
  redis.call('RPUSH', FAILURES, failure)
  redis.call('HINCRBY', JOB, 'failed', 1)
  settle()
  index()
  return 1
end

-- How many chunks of a model are pending, counted up to a limit.
function operations.pending(model, limit)
  local count, seen = 0, {}
  for _, remote in ipairs({'0', '1'}) do
    for _, job in ipairs(redis.call('ZRANGE', ready_for(model, remote), 0, tonumber(limit) - 1)) do
      if not seen[job] then
        seen[job] = true
        use(job)
        count = count + redis.call('ZCOUNT', OPEN, 0, 0)
        if count >= tonumber(limit) then return tonumber(limit) end
      end
    end
  end
  return count
end

local function row_of(chunk)
  return {id, chunk, chunk_get(chunk, 'token'), chunk_get(chunk, 'attempt'),
          chunk_get(chunk, 'items'),
          redis.call('ZCARD', ready_for(get('model'), is_remote(chunk))),
          chunk_get(chunk, 'since') or stamp(now)}
end

local function first_pending(max_attempts, remote)
  for _, chunk in ipairs(redis.call('ZRANGEBYSCORE', OPEN, 0, 0)) do
    local attempt = tonumber(chunk_get(chunk, 'attempt') or max_attempts)
    if attempt < max_attempts and is_remote(chunk) == remote then return chunk end
  end
end

local function understood(versions)
  return string.find(',' .. versions .. ',', ',' .. (get('version') or '1') .. ',', 1, true)
end

-- The next chunk of a model. `ask` is one per call and the claim's token: a command that is sent
-- again, because its answer was lost, gets the same chunk. A job of a version that the worker does
-- not know is left to others; when there is no other, its id is the answer.
function operations.claim(model, worker, seconds, ask, max_attempts, versions, remote)
  local asked = ask_key(ask)
  local before = redis.call('HMGET', asked, 'job', 'chunk')
  if before[1] then
    use(before[1])
    return holds(before[2], ask) and row_of(before[2]) or nil
  end
  local strange
  for _, job in ipairs(redis.call('ZRANGE', ready_for(model, remote), 0, -1)) do
    use(job)
    local known = understood(versions)
    local chunk = known and first_pending(tonumber(max_attempts), remote)
    if not known then strange = strange or job end
    if chunk then
      forget_claim(chunk)
      redis.call('HINCRBY', chunk_key(chunk), 'attempt', 1)
      redis.call('HSET', chunk_key(chunk), 'token', ask, 'worker', worker)
      redis.call('HSETNX', chunk_key(chunk), 'since', stamp(now))
      redis.call('HDEL', chunk_key(chunk), 'suspect')
      redis.call('ZADD', OPEN, stamp(now + tonumber(seconds)), chunk)
      redis.call('HSET', JOB, 'served_at', stamp(now))
      redis.call('HSET', asked, 'job', job, 'chunk', chunk)
      redis.call('EXPIRE', asked, math.ceil(tonumber(seconds)))
      index()
      return row_of(chunk)
    end
  end
  return strange
end

function operations.renew(chunk, token, seconds)
  if get('state') ~= 'running' or not holds(chunk, token) then return 0 end
  redis.call('ZADD', OPEN, stamp(now + tonumber(seconds)), chunk)
  index()
  return 1
end

function operations.suspect(chunk, token, place)
  if not holds(chunk, token) then return 0 end
  redis.call('HSET', chunk_key(chunk), 'suspect', place)
  return 1
end

-- `size`: of the chunk; what is neither counted nor failed becomes a chunk of its own, `rest`, or
-- stays in this one, `kept`: then the claim goes on.
-- `rate`: of the chunk, 0 when it is not known; the job's is a moving average.
function operations.mark(chunk, token, size, done, skipped, rate, weight,
                         unique, rest, rest_size, rest_attempt, rest_remote,
                         kept, kept_size, kept_remote, ...)
  if not holds(chunk, token) or chunk_get(chunk, 'size') ~= size then return 0 end
  local failures = {...}
  redis.call('HINCRBY', JOB, 'done', done)
  redis.call('HINCRBY', JOB, 'skipped', skipped)
  redis.call('HINCRBY', JOB, 'failed', #failures)
  for _, failure in ipairs(failures) do redis.call('RPUSH', FAILURES, failure) end
  redis.call('HSET', JOB, 'waiting', '')
  if tonumber(rate) > 0 then
    local before = tonumber(get('rate') or rate)
    redis.call('HSET', JOB, 'rate', stamp(before + tonumber(weight) * (rate - before)))
  end
  if tonumber(kept_size) > 0 then
    keep_in_chunk(chunk, kept, kept_size, kept_remote)
  else
    drop_chunk(chunk)
  end
  if tonumber(rest_size) > 0 and get('state') == 'running' then
    add_chunk(unique, rest, rest_size, rest_attempt, rest_remote)
  end
  settle()
  index()
  return 1
end

function operations.release(chunk, token, count_attempt)
  if not holds(chunk, token) then return 0 end
  if get('state') ~= 'running' then
    drop_chunk(chunk)
    return 1
  end
  forget_claim(chunk)
  if count_attempt == '0' then redis.call('HINCRBY', chunk_key(chunk), 'attempt', -1) end
  redis.call('HSET', chunk_key(chunk), 'token', '')
  redis.call('ZADD', OPEN, 0, chunk)
  index()
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
  index()
  return 1
end

function operations.note(waiting)
  if get('state') == 'running' then redis.call('HSET', JOB, 'waiting', waiting) end
end

return operations[op](unpack(ARGV, 4))
