-- The webhooks of jobs that have ended. One call is one atomic step.
-- ARGV: the operation, the clock, the arguments of the operation.
-- The clock is unix seconds; '' means the server's time, and tests pass their own.
-- `create` of ledger.lua adds a job with a webhook to JOBS, and `remove` takes it out of everything.

local op, clock = ARGV[1], ARGV[2]
local ROOT = 'clipfleet:'
local ACTIVE = ROOT .. 'jobs:active'
local JOBS = ROOT .. 'webhooks:jobs' -- jobs whose webhook is in no queue: they had not ended
local QUEUES = ROOT .. 'webhooks:queues' -- scored by the time when one of its webhooks is due

local now
if clock == '' then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
else
  now = tonumber(clock)
end

local function stamp(seconds) return string.format('%.6f', seconds) end
local function job_key(job) return ROOT .. 'job:' .. job end
local function queue_key(queue) return ROOT .. 'webhooks:queue:' .. queue end

-- The webhooks of one API key for one host are one queue. A host contains no blank.
local function queue_of(job)
  local values = redis.call('HMGET', job_key(job), 'webhook_host', 'api_key')
  return values[1] and values[1] .. ' ' .. (values[2] or '')
end

-- Sets when the queue is looked at: when its first webhook is due, and not before `earliest`, so that
-- a queue that was served goes behind the others.
local function order(queue, earliest)
  local first = redis.call('ZRANGE', queue_key(queue), 0, 0, 'WITHSCORES')
  if first[2] then
    redis.call('ZADD', QUEUES, stamp(math.max(earliest, tonumber(first[2]))), queue)
  else
    redis.call('ZREM', QUEUES, queue)
  end
end

local function schedule(job, time)
  local queue = queue_of(job)
  if not queue then return end
  redis.call('ZADD', queue_key(queue), stamp(time), job)
  local before = tonumber(redis.call('ZSCORE', QUEUES, queue) or 'inf')
  if before > time then redis.call('ZADD', QUEUES, stamp(time), queue) end
end

-- Whichever release has ended a job: its webhook is due since then.
local function schedule_ended()
  for _, job in ipairs(redis.call('SDIFF', JOBS, ACTIVE)) do
    redis.call('SREM', JOBS, job)
    schedule(job, tonumber(redis.call('HGET', job_key(job), 'finished_at') or now))
  end
end

-- The first webhook of the queue that is due.
local function first_due(queue)
  while true do
    local job = redis.call('ZRANGEBYSCORE', queue_key(queue), '-inf', stamp(now), 'LIMIT', 0, 1)[1]
    if not job or redis.call('HGET', job_key(job), 'webhook') == 'pending' then return job end
    redis.call('ZREM', queue_key(queue), job) -- another release removed the job
  end
end

local operations = {}

-- Returns a job whose webhook is due, and how often it was sent before. It is due again after
-- `seconds`, unless it is settled. `full`: two sets, of hosts and of keys, which are passed over.
function operations.claim(token, seconds, full)
  schedule_ended()
  full = cjson.decode(full)
  for _, queue in ipairs(redis.call('ZRANGEBYSCORE', QUEUES, '-inf', stamp(now))) do
    local host, key = string.match(queue, '^(%S*) (.*)$')
    if not full.hosts[host] and not full.keys[key] then
      local job = first_due(queue)
      if job then
        redis.call('ZADD', queue_key(queue), stamp(now + tonumber(seconds)), job)
        redis.call('HSET', job_key(job), 'webhook_token', token)
      end
      order(queue, now)
      if job then
        return {job, redis.call('HINCRBY', job_key(job), 'webhook_tries', 1), host, key}
      end
    end
  end
end

-- Sets the state of a webhook. Without effect when another claim has it, unless it was delivered.
function operations.settle(job, token, state, reason, pause_s)
  local current = redis.call('HMGET', job_key(job), 'webhook', 'webhook_token')
  if current[1] ~= 'pending' then return 0 end
  if current[2] ~= token and state ~= 'delivered' then return 0 end
  redis.call('HSET', job_key(job), 'webhook', state, 'webhook_reason', reason, 'webhook_token', '')
  local queue = queue_of(job)
  if state == 'pending' then
    redis.call('ZADD', queue_key(queue), stamp(now + tonumber(pause_s)), job)
  else
    redis.call('ZREM', queue_key(queue), job)
  end
  order(queue, now)
  return 1
end

return operations[op](unpack(ARGV, 3))
