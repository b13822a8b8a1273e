-- Sends POST requests with an idempotency key. Arguments: a prefix of all keys; how many requests in a row of one
-- thread have the same key, 0 for all of all threads; bytes of the body; how many paths to go through in turn.

local threads = 0

function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end

local heads, tail = {}, ""
local prefix, each, paths
local n = 0

function init(args)
  prefix, each, paths = args[1], tonumber(args[2]), tonumber(args[4])
  if each > 0 then prefix = prefix .. id .. "-" end
  local body = '{"pad":"' .. string.rep("x", tonumber(args[3]) - 10) .. '"}'
  local headers = { ["Content-Type"] = "application/json", ["X-Request-ID"] = "@KEY@" }
  for i = 0, paths - 1 do
    local text = wrk.format("POST", "/p" .. i .. "/", headers, body)
    local from, to = text:find("@KEY@", 1, true)
    heads[i] = text:sub(1, from - 1)
    tail = text:sub(to + 1)
  end
  n = math.floor(id * paths / 2) -- two threads are not to go through the paths in step
end

function request()
  n = n + 1
  local key = 100000000 -- so that all keys have one length
  if each > 0 then key = key + math.floor(n / each) end
  return heads[n % paths] .. prefix .. key .. tail
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("result %d %d %d %d %d %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.read, e.connect + e.write + e.status + e.timeout))
end
