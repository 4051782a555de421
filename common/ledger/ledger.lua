-- Every write of the ledger. One call is one atomic step.
-- ARGV: the operation, the clock, the job id, the arguments of the operation.
-- The clock is unix seconds; '' means the server's time, and tests pass their own.

local op, clock = ARGV[1], ARGV[2]
local ROOT = 'clipfleet:'
local ACTIVE, ENDED, JOBS = ROOT .. 'jobs:active', ROOT .. 'jobs:ended', ROOT .. 'jobs'
local REMOVING = JOBS .. ':removing' -- jobs whose removal has begun, scored by the time
local KEEPER = ROOT .. 'housekeeper'
local KEEP_LEASED_S = 3600
local KEEP_SERVED_S = 3600 -- as in memory.py
local LOW = 1e14 -- added to the place of a low job: more than 1,000 leased chunks
local MAX_REPLANS = 3
local MAX_NOTES = 60 -- keys, as in notes.py
local STATES = {'queued', 'running', 'succeeded', 'partial', 'failed', 'cancelled'}
local COLLECTIONS = JOBS .. ':collections' -- that have jobs
local DUE = JOBS .. ':due' -- jobs without a planner, scored by the time of the next look
local PLANNERS = JOBS .. ':planners' -- scored by the time until which they count as alive
local MIRRORS = JOBS .. ':mirrors' -- a hash: the running mirror of each source
local CLOSING = JOBS .. ':closing' -- a hash: the mirror of each collection that is in its last step
local WEBHOOKS = ROOT .. 'webhooks:' -- see webhooks.lua
local LOOK_INTERVAL_S = 10 -- between two looks of a planner at a job of which nothing happened
local OFFER_S = 1 -- for which a job is offered to one planner only

local id, JOB, OPEN, FAILURES, PARTS, SOURCE -- of the current job, see `use`

-- Makes a job the current one.
local function use(job)
  id, JOB = job, ROOT .. 'job:' .. job
  SOURCE = JOB .. ':source' -- the whole request, when its source is long
  OPEN, FAILURES, PARTS = JOB .. ':open', JOB .. ':failures', JOB .. ':failures:parts'
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
local function jobs_that_are(state) return JOBS .. ':state:' .. state end
local function jobs_in_that_are(collection, state)
  return jobs_that_are(state) .. ':in:' .. collection
end
local function active_of(key) return ACTIVE .. ':of:' .. key end
local function due_for(planner) return DUE .. ':' .. planner end
local function idempotency_key(key) return ROOT .. 'idempotency:' .. key end
local function chunk_get(chunk, name) return redis.call('HGET', chunk_key(chunk), name) end
-- Indices of pending chunks: one for remote chunks and one for all others. Owners wait in `turns`, and
-- the jobs of each owner in a set of its own.
local function turns(model, remote)
  return ROOT .. (remote == '1' and 'turns-remote:' or 'turns:') .. model
end
local function turns_of(owner, model, remote) return turns(model, remote) .. ':of:' .. owner end
local function in_hand_of(owner, model) return ROOT .. 'in-hand:' .. model .. ':of:' .. owner end
local function served(model) return ROOT .. 'served:' .. model end -- keys, scored by their last claim
local function ready_before(model, remote) -- the index of the release before: jobs, whoever owns them
  return ROOT .. (remote == '1' and 'ready-remote:' or 'ready:') .. model
end
local function ask_key(token) return ROOT .. 'ask:' .. token end

-- Sets the state of the job, and moves it to the indices of that state.
local function set_state(state)
  local created_at, collection = get('created_at') or 0, get('collection') or ''
  for _, other in ipairs(STATES) do
    if other ~= state and redis.call('ZREM', jobs_that_are(other), id) == 1 then
      redis.call('ZREM', jobs_in_that_are(collection, other), id)
    end
  end
  redis.call('HSET', JOB, 'state', state)
  redis.call('ZADD', jobs_that_are(state), created_at, id)
  redis.call('ZADD', jobs_in_that_are(collection, state), created_at, id)
end

-- The queue of the job, while it has not ended: its planner's, or that of jobs without a planner.
local function due()
  local planner = get('planner') or ''
  if planner ~= '' and redis.call('ZSCORE', PLANNERS, planner) then return due_for(planner) end
  return DUE
end

-- Requests that a planner looks at the job at this time or earlier.
local function look_at(time)
  if redis.call('SISMEMBER', ACTIVE, id) == 0 then return end
  local before = redis.call('ZSCORE', due(), id)
  if not before or tonumber(before) > time then redis.call('ZADD', due(), stamp(time), id) end
end

local function is_alive(planner)
  return tonumber(redis.call('ZSCORE', PLANNERS, planner) or '0') > now
end

local function keep_alive(planner, seconds)
  local last = tonumber(redis.call('ZSCORE', PLANNERS, planner) or '0')
  if last < now + seconds * 2 / 3 then
    redis.call('ZADD', PLANNERS, stamp(now + seconds), planner)
  end
end

-- Takes a job from its planner. A job without a planner is due at once.
local function set_free(planner, job)
  use(job)
  redis.call('ZREM', due_for(planner), job)
  redis.call('HSET', JOB, 'planner', '', 'planner_until', 0)
  look_at(now)
end

local function set_all_free(planner)
  for _, job in ipairs(redis.call('ZRANGE', due_for(planner), 0, -1)) do set_free(planner, job) end
  redis.call('ZREM', PLANNERS, planner)
end

local function is_remote(chunk) return chunk_get(chunk, 'remote') == '1' and '1' or '0' end

-- The kinds of chunks that are pending: '0' and '1', the values of `is_remote`. A job without open
-- remote chunks is not searched. Scripts of older releases do not count `open_remote` down: it may be
-- too high.
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

-- The API key of the job, or the job itself when it has none.
local function owner()
  local key = get('api_key') or ''
  return key ~= '' and 'key:' .. key or 'job:' .. id
end

-- The leased chunks of an owner's jobs. Jobs that a release without this count has ended are dropped.
local function count_in_hand(key)
  local total, counts = 0, redis.call('HGETALL', key)
  for i = 1, #counts, 2 do
    if redis.call('SISMEMBER', ACTIVE, counts[i]) == 1 then
      total = total + tonumber(counts[i + 1])
    else
      redis.call('HDEL', key, counts[i])
    end
  end
  return total
end

-- Adds the job to the indices of its model while one of its chunks is pending, or removes it. The
-- owner with the fewest leased chunks comes first, then the owner whose last claim is the longest ago.
-- So do the jobs of one owner. Low jobs, which have no key, come after all others. A chunk whose lease
-- expired counts as leased until `requeue`, so that only writes change the order.
local function index()
  local model = get('model')
  if not model then return end -- a job of an older release: `lease` writes the field
  local has, who, in_hand = pending_kinds(), owner(), 0
  if get('state') == 'running' then in_hand = redis.call('ZCOUNT', OPEN, '(0', '+inf') end
  local hands = in_hand_of(who, model)
  if in_hand > 0 then redis.call('HSET', hands, id, in_hand) else redis.call('HDEL', hands, id) end
  local served_at = tonumber(get('served_at') or get('created_at'))
  local owner_served_at = served_at
  if who ~= 'job:' .. id then
    owner_served_at = tonumber(redis.call('ZSCORE', served(model), who) or '0')
  end
  local low = get('low') == '1' and LOW or 0
  local first = stamp(low + count_in_hand(hands) * 1e10 + owner_served_at)
  for _, remote in ipairs({'0', '1'}) do
    local jobs = turns_of(who, model, remote)
    redis.call('ZREM', ready_before(model, remote), id)
    if has[remote] then
      redis.call('ZADD', jobs, stamp(in_hand * 1e10 + served_at), id)
    else
      redis.call('ZREM', jobs, id)
    end
    if redis.call('EXISTS', jobs) == 1 then
      redis.call('ZADD', turns(model, remote), first, who)
    else
      redis.call('ZREM', turns(model, remote), who)
    end
  end
end

-- Moves jobs from the index of the release before, whose planners and workers may still write it.
local function adopt_ready(model, remote)
  for _, job in ipairs(redis.call('ZRANGE', ready_before(model, remote), 0, -1)) do
    use(job)
    index()
    redis.call('ZREM', ready_before(model, remote), job)
  end
end

-- Calls `visit` for each job with pending chunks, in the order of their turns, until it returns a value.
-- limit: the number of owners, and of jobs of each, that are read; 0: all.
local function each_turn(model, remote, limit, visit)
  adopt_ready(model, remote)
  for _, who in ipairs(redis.call('ZRANGE', turns(model, remote), 0, limit - 1)) do
    for _, job in ipairs(redis.call('ZRANGE', turns_of(who, model, remote), 0, limit - 1)) do
      use(job)
      local value = visit(job)
      if value then return value end
    end
  end
end

-- The name of a chunk is its number in the job and `unique`, which the caller chooses at random: when
-- Redis loses its last second, a number is used twice, but never a name.
local function add_chunk(unique, items, size, attempt, remote)
  local no = redis.call('HINCRBY', JOB, 'chunks', 1)
  local chunk = string.format('%08d-%s', no, unique)
  redis.call('HSET', chunk_key(chunk), 'items', items, 'size', size, 'attempt', attempt,
             'token', '', 'remote', remote)
  if is_remote(chunk) == '1' then redis.call('HINCRBY', JOB, 'open_remote', 1) end
  redis.call('ZADD', OPEN, 0, chunk)
  return chunk
end

-- Deletes what `claim` keeps for a command that is sent again.
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

local function drop_active()
  redis.call('SREM', ACTIVE, id)
  redis.call('SREM', active_of(get('api_key') or ''), id)
end

-- Lets other mirrors start and end.
local function drop_mirror()
  for index_, key in pairs({[MIRRORS] = get('mirrored'), [CLOSING] = get('closing')}) do
    if key and redis.call('HGET', index_, key) == id then redis.call('HDEL', index_, key) end
  end
end

local function finish(state)
  set_state(state)
  drop_mirror()
  redis.call('HSET', JOB, 'finished_at', stamp(now), 'waiting', '')
  redis.call('UNLINK', SOURCE)
  redis.call('ZREM', due(), id)
  drop_active()
  redis.call('ZADD', ENDED, stamp(now), id)
end

-- Plans the job again from its start. Images that are stored already are skipped then.
local function replan()
  if redis.call('HINCRBY', JOB, 'replans', 1) > MAX_REPLANS then
    redis.call('HSET', JOB, 'error', 'its counts do not add up, however often it is planned')
    return finish('failed')
  end
  redis.call('DEL', FAILURES, PARTS)
  redis.call('HSET', JOB, 'planned', 0, 'failed_bytes', 0, 'cursor', '', 'total', 0, 'done', 0, 'failed', 0,
             'skipped', 0, 'replaced', 0, 'updated', 0, 'notes', '{}', 'waiting', 'its counts do not add up; it is planned again from its start')
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
  elseif (get('closing') or '') ~= '' then
    look_at(now)
  else
    finish(failed > 0 and 'partial' or 'succeeded')
  end
end

local function holds(chunk, token) return token ~= '' and chunk_get(chunk, 'token') == token end

-- Whether no worker holds the chunk, and its attempt is the one that the caller has seen.
local function is_free(chunk, attempt)
  local lease_until = redis.call('ZSCORE', OPEN, chunk)
  return lease_until and tonumber(lease_until) <= now and chunk_get(chunk, 'attempt') == attempt
end

local operations = {}

-- Returns the numbers of all active jobs and of those of an API key when there is no room for another
-- job of the key. A key may have a further job while it has fewer than are free, as in
-- `may_take` of shares.py. An older release does not take jobs that ended out of `active_of`.
local function crowd(limit, key)
  local active, of_key = redis.call('SCARD', ACTIVE), 0
  if key ~= '' then of_key = redis.call('SINTERSTORE', active_of(key), active_of(key), ACTIVE) end
  local free = tonumber(limit) - active
  if of_key >= free then return {active, of_key} end
end

function operations.crowd(limit, key) return crowd(limit, key) end

-- Returns nil, '!' and the reason when there is nothing to retry, or the id of a retry that has not
-- ended.
local function running_retry(of)
  local old = ROOT .. 'job:' .. of
  local state = redis.call('HGET', old, 'state')
  if not state or redis.call('ZSCORE', REMOVING, of) then return '!gone' end
  if redis.call('SISMEMBER', ACTIVE, of) == 1 then return '!running' end
  if redis.call('HGET', old, 'failed') == '0' then return '!nothing' end
  local by = redis.call('HGET', old, 'retried_by')
  if by and redis.call('SISMEMBER', ACTIVE, by) == 1 then return by end
end

function operations.create(fields, whole, version, collection, model, retry_of, key, keep_key_s,
                           limit, api_key, webhook_host, closing, mirrored, low)
  local existing = key ~= '' and redis.call('GET', idempotency_key(key))
  if existing then return existing end
  if get('state') then return id end -- it was created, and the answer was lost
  local instead = retry_of ~= '' and running_retry(retry_of) or crowd(limit, api_key)
  if instead then return instead end
  if mirrored and mirrored ~= '' then
    local other = redis.call('HGET', MIRRORS, mirrored)
    if other and redis.call('SISMEMBER', ACTIVE, other) == 1 then return '!mirror ' .. other end
    redis.call('HSET', MIRRORS, mirrored, id)
    redis.call('HSET', JOB, 'mirrored', mirrored)
  end
  if closing and closing ~= '' then redis.call('HSET', JOB, 'closing', closing) end
  if retry_of ~= '' then redis.call('HSET', ROOT .. 'job:' .. retry_of, 'retried_by', id) end
  if key ~= '' then redis.call('SET', idempotency_key(key), id, 'EX', keep_key_s) end
  if whole ~= '' then redis.call('SET', SOURCE, whole) end
  redis.call('HSET', JOB, 'new', fields, 'created_at', stamp(now),
             'planned', 0, 'total', 0, 'estimated', 0, 'done', 0, 'failed', 0, 'skipped', 0,
             'chunks', 0, 'cursor', '', 'error', '', 'waiting', '',
             'planner', '', 'planner_until', 0, 'planner_token', '', 'version', version,
             'model', model, 'collection', collection, 'retry_of', retry_of, 'key', key,
             'api_key', api_key)
  if low == '1' then redis.call('HSET', JOB, 'low', 1) end
  redis.call('ZADD', JOBS, stamp(now), id)
  redis.call('ZADD', jobs_in(collection), stamp(now), id)
  redis.call('SADD', COLLECTIONS, collection)
  redis.call('SADD', ACTIVE, id)
  if api_key ~= '' then redis.call('SADD', active_of(api_key), id) end
  if webhook_host and webhook_host ~= '' then
    redis.call('HSET', JOB, 'webhook', 'pending', 'webhook_host', webhook_host)
    redis.call('SADD', WEBHOOKS .. 'jobs', id)
  end
  set_state('queued')
  look_at(now)
  return id
end

-- Cancels a job and records that its removal has begun. Files are deleted after this, so that nothing
-- is deleted while Redis takes no writes. A full Redis refuses the record, but not `remove`.
function operations.begin_removal(reason)
  if not get('state') then return 0 end
  operations.cancel(reason)
  local added = redis.pcall('ZADD', REMOVING, 'NX', stamp(now), id)
  if type(added) == 'table' and added.err and not string.find(added.err, 'OOM', 1, true) then
    return added
  end
  return 1
end

function operations.removals(limit)
  return redis.call('ZRANGE', REMOVING, 0, tonumber(limit) - 1)
end

function operations.remove()
  redis.call('ZREM', REMOVING, id)
  if not get('state') then return 0 end
  for _, chunk in ipairs(redis.call('ZRANGE', OPEN, 0, -1)) do drop_chunk(chunk) end
  local collection = get('collection') or ''
  for _, state in ipairs(STATES) do
    redis.call('ZREM', jobs_that_are(state), id)
    redis.call('ZREM', jobs_in_that_are(collection, state), id)
  end
  redis.call('ZREM', JOBS, id)
  redis.call('ZREM', jobs_in(collection), id)
  if redis.call('EXISTS', jobs_in(collection)) == 0 then
    redis.call('SREM', COLLECTIONS, collection)
  end
  redis.call('ZREM', ENDED, id)
  redis.call('ZREM', due(), id)
  drop_active()
  drop_mirror()
  index()
  local idempotency = idempotency_key(get('key') or '')
  if redis.call('GET', idempotency) == id then redis.call('DEL', idempotency) end
  local old = ROOT .. 'job:' .. (get('retry_of') or '')
  if redis.call('HGET', old, 'retried_by') == id then redis.call('HDEL', old, 'retried_by') end
  local host = get('webhook_host')
  if host then
    redis.call('SREM', WEBHOOKS .. 'jobs', id)
    redis.call('ZREM', WEBHOOKS .. 'queue:' .. host .. ' ' .. (get('api_key') or ''), id)
  end
  local has_parts = get('has_parts')
  redis.call('UNLINK', JOB, OPEN, FAILURES, PARTS, SOURCE)
  return has_parts and 2 or 1
end

function operations.acquire_cleanup_lock(keeper, seconds)
  local holder = redis.call('HMGET', KEEPER, 'name', 'until')
  if holder[1] and holder[1] ~= keeper and tonumber(holder[2]) > now then return 0 end
  redis.call('HSET', KEEPER, 'name', keeper, 'until', stamp(now + tonumber(seconds)))
  return 1
end

function operations.ended(seconds_ago, limit)
  local last = stamp(now - tonumber(seconds_ago))
  return redis.call('ZRANGEBYSCORE', ENDED, '-inf', last, 'LIMIT', 0, limit)
end

-- The numbers of jobs: all, active, and in each state. When they agree, the indices are right.
function operations.counts()
  local counts = {redis.call('ZCARD', JOBS), redis.call('SCARD', ACTIVE)}
  for _, state in ipairs(STATES) do
    counts[#counts + 1] = redis.call('ZCARD', jobs_that_are(state))
  end
  return counts
end

-- Adds jobs to the indices where another release did not, and removes jobs that do not exist.
function operations.reindex(...)
  for _, job in ipairs({...}) do
    use(job)
    local state = get('state')
    if state then
      if not redis.call('ZSCORE', jobs_that_are(state), job) then set_state(state) end
      redis.call('SADD', COLLECTIONS, get('collection') or '')
    else
      redis.call('ZREM', JOBS, job)
      redis.call('SREM', ACTIVE, job)
      for _, other in ipairs(STATES) do redis.call('ZREM', jobs_that_are(other), job) end
    end
  end
end

-- `ask` is random for each call, and becomes the token of a new lease. For a job of an older release,
-- the fields that `claim` needs are written. A planner has its jobs as long as it is alive; a planner
-- of an older release has them until `planner_until`.
function operations.lease(planner, seconds, ask)
  local state = get('state')
  if state ~= 'queued' and state ~= 'running' then return nil end
  local holder = get('planner') or ''
  local held = holder ~= '' and (is_alive(holder) or number('planner_until') > now)
  if held and holder ~= planner then return nil end
  keep_alive(planner, tonumber(seconds))
  if not held then
    redis.call('ZREM', due(), id)
    redis.call('HSET', JOB, 'planner', planner, 'planner_token', ask,
               'planner_until', redis.call('ZSCORE', PLANNERS, planner))
    look_at(now)
  end
  if state == 'queued' then
    set_state('running')
    redis.call('HSET', JOB, 'started_at', stamp(now))
  end
  if not get('model') then
    local new = cjson.decode(get('new'))
    redis.call('HSET', JOB, 'model', new.model, 'version', new.v or 1)
  end
  index()
  return {get('planner_token'), get('cursor'), get('planned')}
end

-- Adds jobs of an older release to the queue: that release did not.
local function adopt(planners)
  local count = redis.call('ZCARD', DUE)
  for _, planner in ipairs(planners) do count = count + redis.call('ZCARD', due_for(planner)) end
  if count == redis.call('SCARD', ACTIVE) then return end
  for _, job in ipairs(redis.call('SMEMBERS', ACTIVE)) do
    use(job)
    if not redis.call('ZSCORE', due(), job) then look_at(now) end
  end
end

-- Returns how many more jobs the planner may have. When another planner has none, a planner with many
-- more than its share loses the surplus, the job that is due last first. Otherwise jobs stay, since
-- the next planner of a job has to open its source again.
local function share_out(planner, planners)
  local mine, has_idle = redis.call('ZCARD', due_for(planner)), false
  for _, other in ipairs(planners) do
    has_idle = has_idle or redis.call('EXISTS', due_for(other)) == 0
  end
  local share = math.ceil(redis.call('SCARD', ACTIVE) / #planners)
  if has_idle and mine > share + math.max(1, share / 4) then
    for _, job in ipairs(redis.call('ZREVRANGE', due_for(planner), 0, mine - share - 1)) do
      set_free(planner, job)
    end
    return 0
  end
  return math.max(0, share - mine)
end

-- Chunks whose lease expired, and chunks that were tried too often.
local function troubled(max_attempts)
  local rows = {}
  local function add(chunk, leased)
    local values = redis.call('HMGET', chunk_key(chunk), 'size', 'attempt', 'suspect')
    if values[1] and (leased == 1 or tonumber(values[2]) >= max_attempts) then
      rows[#rows + 1] = {chunk, values[1], values[2], leased, leased, values[3] or ''}
    end
  end
  for _, chunk in ipairs(redis.call('ZRANGEBYSCORE', OPEN, '(0', stamp(now))) do add(chunk, 1) end
  for _, chunk in ipairs(redis.call('ZRANGEBYSCORE', OPEN, 0, 0)) do add(chunk, 0) end
  return rows
end

-- What the planner sees of the job; also sets the time of the next look.
local function look(planner, max_attempts)
  local ends = redis.call('ZRANGEBYSCORE', OPEN, '(' .. stamp(now), '+inf', 'WITHSCORES',
                          'LIMIT', 0, 1)
  local next_look = math.min(now + LOOK_INTERVAL_S, tonumber(ends[2] or now + LOOK_INTERVAL_S))
  redis.call('ZADD', due_for(planner), stamp(next_look), id)
  local values = redis.call('HMGET', JOB, 'planner_token', 'cursor', 'planned', 'total', 'waiting')
  local open_images = 0
  for _, chunk in ipairs(redis.call('ZRANGE', OPEN, 0, -1)) do
    open_images = open_images + tonumber(chunk_get(chunk, 'size') or 0)
  end
  return {id, values[1], values[2], values[3], values[4], values[5] or '', redis.call('ZCARD', OPEN),
          open_images, get('rate') or '0', troubled(max_attempts)}
end

-- Returns the planner's jobs that are due, jobs without a planner that are offered to it, and how many
-- it has. `...`: jobs of its own that are due in any case.
function operations.tend(planner, seconds, limit, offers, max_attempts, ...)
  keep_alive(planner, tonumber(seconds))
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', PLANNERS, '-inf', stamp(now))) do
    set_all_free(dead)
  end
  local planners = redis.call('ZRANGE', PLANNERS, 0, -1)
  adopt(planners)
  local room = math.min(tonumber(offers), share_out(planner, planners))
  local mine, looks, offered = due_for(planner), {}, {}
  for _, job in ipairs({...}) do
    if redis.call('ZSCORE', mine, job) then redis.call('ZADD', mine, stamp(now), job) end
  end
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', mine, '-inf', stamp(now), 'LIMIT', 0, limit)) do
    use(job)
    if redis.call('SISMEMBER', ACTIVE, job) == 1 and get('planner') == planner then
      looks[#looks + 1] = look(planner, tonumber(max_attempts))
    else -- another release ended the job, or its planner leased it
      redis.call('ZREM', mine, job)
    end
  end
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', stamp(now), 'LIMIT', 0, room)) do
    if redis.call('SISMEMBER', ACTIVE, job) == 1 then
      redis.call('ZADD', DUE, stamp(now + OFFER_S), job)
      offered[#offered + 1] = job
    else
      redis.call('ZREM', DUE, job)
    end
  end
  return {looks, offered, redis.call('ZCARD', mine)}
end

function operations.owned(planner) return redis.call('ZRANGE', due_for(planner), 0, -1) end

function operations.deregister_planner(planner) set_all_free(planner) end

function operations.estimate(images)
  if get('state') then redis.call('HSET', JOB, 'estimated', images) end
end

local function may_plan(token)
  return get('state') == 'running' and get('planner_token') == token and get('planned') == '0'
end

-- Adds counts, by the suffix of files or by a remark, as `added` of notes.py does.
local function add_notes(json)
  if not json or json == '' then return end -- an older planner counts nothing
  local notes, size = cjson.decode(get('notes') or '{}'), 0
  for _ in pairs(notes) do size = size + 1 end
  for key, count in pairs(cjson.decode(json)) do
    if not notes[key] and size >= MAX_NOTES and string.sub(key, 1, 1) == '.' then key = '.*' end
    if not notes[key] then size = size + 1 end
    notes[key] = (notes[key] or 0) + count
  end
  redis.call('HSET', JOB, 'notes', cjson.encode(notes))
end

-- skipped: images without work; an older planner has none.
function operations.plan(token, unique, items, size, remote, after, cursor, notes, skipped)
  if not may_plan(token) or get('cursor') ~= after then return nil end
  redis.call('HINCRBY', JOB, 'total', tonumber(size) + tonumber(skipped or 0))
  redis.call('HINCRBY', JOB, 'skipped', skipped or 0)
  redis.call('HSET', JOB, 'cursor', cursor)
  add_notes(notes)
  if size == '0' then return '' end
  local chunk = add_chunk(unique, items, size, 0, remote)
  index()
  return chunk
end

function operations.finish_planning(token, after, error, notes)
  if not may_plan(token) or get('cursor') ~= after then return 0 end
  redis.call('HSET', JOB, 'planned', 1, 'error', error)
  add_notes(notes)
  settle()
  look_at(now)
  index()
  return 1
end

-- Whether the holder of this lease may do the last step of a mirror.
local function may_close(token)
  return get('state') == 'running' and get('planner_token') == token and get('planned') == '1'
    and (get('closing') or '') ~= '' and redis.call('ZCARD', OPEN) == 0
end

function operations.begin_close(token)
  if not may_close(token) then return 'lost' end
  local collection = get('closing')
  local other = redis.call('HGET', CLOSING, collection)
  if other and other ~= id and redis.call('SISMEMBER', ACTIVE, other) == 1 then return 'wait' end
  redis.call('HSET', CLOSING, collection, id)
  return 'begun'
end

function operations.close(token, result, error)
  if not may_close(token) then return 0 end
  drop_mirror()
  redis.call('HSET', JOB, 'closing', '', 'mirror', result, 'error', error)
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

-- Makes a chunk pending whose lease expired. Its late holder may mark it until it is claimed again.
function operations.requeue(chunk, attempt)
  if get('state') ~= 'running' or not is_free(chunk, attempt) then return 0 end
  redis.call('ZADD', OPEN, 0, chunk)
  index()
  return 1
end

function operations.split(chunk, attempt, size, left_unique, left, left_size, left_attempt, left_remote,
                          right_unique, right, right_size, right_attempt, right_remote)
  if get('state') ~= 'running' or not is_free(chunk, attempt) then return 0 end
  if chunk_get(chunk, 'size') ~= size then return 0 end -- a late holder marked some of its items
  local since = chunk_get(chunk, 'since') or stamp(now)
  drop_chunk(chunk)
  for _, part in ipairs({add_chunk(left_unique, left, left_size, left_attempt, left_remote),
                         add_chunk(right_unique, right, right_size, right_attempt, right_remote)}) do
    redis.call('HSET', chunk_key(part), 'since', since)
  end
  index()
  return 1
end

-- Whether failures without a part fit into Redis: `limit` of a job, with `max_bytes` in all. If not,
-- the caller writes a part to the blob store and calls again with its name.
local function has_room(part, limit, max_bytes, failures)
  if part ~= '' or #failures == 0 then return true end
  local bytes = 0
  for _, failure in ipairs(failures) do bytes = bytes + #failure end
  if redis.call('EXISTS', PARTS) == 0 and number('failed_bytes') + bytes <= tonumber(max_bytes)
     and redis.call('LLEN', FAILURES) + #failures <= tonumber(limit) then
    redis.call('HINCRBY', JOB, 'failed_bytes', bytes)
    return true
  end
  -- Recorded before the part is written: `remove` must look for it even if no second call comes.
  redis.call('HSET', JOB, 'has_parts', 1)
  return false
end

-- Each entry of PARTS is the name of a part and the number of failures in all parts up to it.
local function add_failures(part, count, failures)
  redis.call('HINCRBY', JOB, 'failed', count)
  for _, failure in ipairs(failures) do redis.call('RPUSH', FAILURES, failure) end
  if part == '' then return end
  local last = redis.call('LINDEX', PARTS, -1)
  local before = last and tonumber(string.match(last, '%d+$')) or 0
  redis.call('RPUSH', PARTS, part .. ' ' .. (before + tonumber(count)))
end

-- Failures from `offset` on: those in Redis, then the parts that contain the rest of `limit`, each as
-- {name, number of failures before it, number of failures in it}.
function operations.failures(limit, offset)
  limit, offset = tonumber(limit), tonumber(offset)
  local kept = redis.call('LLEN', FAILURES)
  local here = redis.call('LRANGE', FAILURES, offset, offset + limit - 1)
  local first, last = math.max(offset, kept) - kept, offset + limit - kept
  local parts, low, high = {}, 0, redis.call('LLEN', PARTS)
  local function part(index)
    local name, upto = string.match(redis.call('LINDEX', PARTS, index), '^(%S+) (%d+)$')
    return name, tonumber(upto)
  end
  while low < high do -- find the first part that ends after `first`
    local middle = math.floor((low + high) / 2)
    local _, upto = part(middle)
    if upto > first then high = middle else low = middle + 1 end
  end
  local before = 0
  if low > 0 then before = select(2, part(low - 1)) end
  for place = low, redis.call('LLEN', PARTS) - 1 do
    if before >= last then break end
    local name, upto = part(place)
    parts[#parts + 1] = {name, kept + before, upto - before}
    before = upto
  end
  return {here, parts}
end

function operations.quarantine(chunk, attempt, part, limit, max_bytes, failure)
  if get('state') ~= 'running' or not is_free(chunk, attempt) then return 0 end
  local failures = part == '' and {failure} or {}
  if not has_room(part, limit, max_bytes, failures) then return 2 end
  drop_chunk(chunk)
  add_failures(part, 1, failures)
  settle()
  index()
  return 1
end

-- The number of pending chunks of a model, counted up to a limit.
function operations.pending(model, limit)
  local count, seen = 0, {}
  for _, remote in ipairs({'0', '1'}) do
    each_turn(model, remote, tonumber(limit), function(job)
      if not seen[job] then
        seen[job] = true
        count = count + redis.call('ZCOUNT', OPEN, 0, 0)
      end
      return count >= tonumber(limit) or nil
    end)
  end
  return math.min(count, tonumber(limit))
end

local function row_of(chunk)
  return {id, chunk, chunk_get(chunk, 'token'), chunk_get(chunk, 'attempt'),
          chunk_get(chunk, 'items'),
          redis.call('ZCARD', turns(get('model'), is_remote(chunk))),
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

-- Claims the next chunk of a model. `ask` is random for each call, and becomes the claim's token: a
-- command that is sent again, because its answer was lost, gets the same chunk. A job of a version
-- that the worker does not understand is passed over; when there is no other, its id is returned.
function operations.claim(model, worker, seconds, ask, max_attempts, versions, remote)
  local request = ask_key(ask)
  local before = redis.call('HMGET', request, 'job', 'chunk')
  if before[1] then
    use(before[1])
    return holds(before[2], ask) and row_of(before[2]) or nil
  end
  local unknown
  local row = each_turn(model, remote, 0, function(job)
    local known = understood(versions)
    local chunk = known and first_pending(tonumber(max_attempts), remote)
    if not known then unknown = unknown or job end
    if not chunk then return nil end
    forget_claim(chunk)
    redis.call('HINCRBY', chunk_key(chunk), 'attempt', 1)
    redis.call('HSET', chunk_key(chunk), 'token', ask, 'worker', worker)
    redis.call('HSETNX', chunk_key(chunk), 'since', stamp(now))
    redis.call('HDEL', chunk_key(chunk), 'suspect')
    redis.call('ZADD', OPEN, stamp(now + tonumber(seconds)), chunk)
    redis.call('HSET', JOB, 'served_at', stamp(now))
    redis.call('ZREMRANGEBYSCORE', served(model), '-inf', stamp(now - KEEP_SERVED_S))
    if owner() ~= 'job:' .. id then redis.call('ZADD', served(model), stamp(now), owner()) end
    redis.call('HSET', request, 'job', job, 'chunk', chunk)
    redis.call('EXPIRE', request, math.ceil(tonumber(seconds)))
    look_at(now + tonumber(seconds))
    index()
    return row_of(chunk)
  end)
  return row or unknown
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

-- Counts the outcome of a chunk.
-- size: the number of its items. rest: items for a new chunk. kept: items that stay in this chunk
-- under the same claim.
-- rate: images per second, 0 when it is not known; the job's rate is a moving average.
-- part: the name of the part with the failures; '' when they follow as arguments.
-- Returns 2 when the failures do not fit, see `has_room`.
function operations.mark(chunk, token, size, done, skipped, replaced, updated, rate, weight,
                         unique, rest, rest_size, rest_attempt, rest_remote,
                         kept, kept_size, kept_remote,
                         failed, part, limit, max_bytes, ...)
  if not holds(chunk, token) or chunk_get(chunk, 'size') ~= size then return 0 end
  local failures = {...}
  if not has_room(part, limit, max_bytes, failures) then return 2 end
  redis.call('HINCRBY', JOB, 'done', done)
  redis.call('HINCRBY', JOB, 'skipped', skipped)
  if replaced ~= '0' then redis.call('HINCRBY', JOB, 'replaced', replaced) end
  if updated ~= '0' then redis.call('HINCRBY', JOB, 'updated', updated) end
  add_failures(part, failed, failures)
  redis.call('HSET', JOB, 'waiting', '')
  if tonumber(rate) > 0 then
    local before = tonumber(get('rate') or rate)
    redis.call('HSET', JOB, 'rate', stamp(before + tonumber(weight) * (rate - before)))
  end
  local since = chunk_get(chunk, 'since') or stamp(now)
  if tonumber(kept_size) > 0 then
    keep_in_chunk(chunk, kept, kept_size, kept_remote)
  else
    drop_chunk(chunk)
  end
  if tonumber(rest_size) > 0 and get('state') == 'running' then
    local part = add_chunk(unique, rest, rest_size, rest_attempt, rest_remote)
    redis.call('HSET', chunk_key(part), 'since', since)
  end
  settle()
  if get('planned') == '0' then look_at(now) end
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
  if count_attempt ~= '0' then look_at(now) end
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
    else -- the worker that holds it may still mark it
      redis.call('EXPIRE', chunk_key(open[i]), KEEP_LEASED_S)
    end
  end
  redis.call('EXPIRE', OPEN, KEEP_LEASED_S)
  redis.call('HSET', JOB, 'error', reason, 'planned', 1)
  finish('cancelled')
  index()
  return 1
end

function operations.set_waiting_reason(waiting)
  if get('state') == 'running' then redis.call('HSET', JOB, 'waiting', waiting) end
end

return operations[op](unpack(ARGV, 4))
