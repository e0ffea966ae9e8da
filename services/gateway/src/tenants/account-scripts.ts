import { RedisScript } from "../shared/redis-store.ts";

/**
 * What Redis decides about a tenant's account, each as one step. Redis runs them one after another and its own clock is the only
 * one, so any number of gateways agree. A tenant's keys carry its name as the hash tag: one slot of a cluster.
 *
 * account   a hash: rs, rn / is, in: when the windows of requests and images began, and their counts; ri, rd: images and
 *           device milliseconds put aside by those that run; m, mi, md: the month, and what it used
 * job       a hash for each job: the largest totals that were told of it, by "key<tab>model<tab>images" and "...deviceMs"
 * leases    a sorted set of "id|images|device milliseconds" by the moment at which each ends by itself
 */
const COMMON = `
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local account, leases = KEYS[1], KEYS[2]

local function use_month(month, images, device)
  local known = redis.call("HGET", account, "m")
  if not known or known < month then
    redis.call("HSET", account, "m", month, "mi", images, "md", device)
  elseif known == month then
    redis.call("HINCRBY", account, "mi", images)
    redis.call("HINCRBY", account, "md", device)
  end
end

local function put_aside(lease, sign)
  local images, device = string.match(lease, "|(%d+)|(%d+)$")
  -- + 0, since -1 * 0 is written "-0", which is no number to Redis.
  redis.call("HINCRBY", account, "ri", sign * images + 0)
  redis.call("HINCRBY", account, "rd", sign * device + 0)
end
`;

/**
 * Counts a request, or says which limit it meets and counts nothing. The same decisions as MemoryLimits.
 *
 * KEYS account, leases
 * ARGV lease, images, device ms, month, lease ms, window ms, then the limits or -1: images and device ms a month, requests
 *      and images a window, requests at once
 * -> [0 or the number of the limit met, requests counted, ms left of their window, images counted, ms left of theirs, images
 *    and device ms that the month used]
 */
export const ENTER = new RedisScript(`${COMMON}
local lease, month = ARGV[1], ARGV[4]
local images, device = tonumber(ARGV[2]), tonumber(ARGV[3])
local lease_ms, window_ms = tonumber(ARGV[5]), tonumber(ARGV[6])

-- Of gateways that are gone: nobody renewed them.
for _, gone in ipairs(redis.call("ZRANGEBYSCORE", leases, "-inf", now)) do
  redis.call("ZREM", leases, gone)
  put_aside(gone, -1)
end

local read = redis.call("HMGET", account, "rs", "rn", "is", "in", "ri", "rd", "m", "mi", "md")
local function number(i) return tonumber(read[i] or "0") end
local function window(start, count)
  if now - start < window_ms then return start, count end
  return now, 0
end
local requests_start, requests = window(number(1), number(2))
local images_start, pictures = window(number(3), number(4))
local month_images, month_device = number(8), number(9)
if not read[7] or read[7] < month then
  month_images, month_device = 0, 0
  redis.call("HSET", account, "m", month, "mi", 0, "md", 0)
end

local function fits(used, more, limit) return limit < 0 or used + more <= limit end
local met = 0
local limits = {}
for i = 1, 5 do limits[i] = tonumber(ARGV[6 + i]) end
if not fits(month_images + number(5), images, limits[1]) then met = 1
elseif not fits(month_device + number(6), math.max(device, 1), limits[2]) then met = 2
elseif not fits(requests, 1, limits[3]) then met = 3
elseif not fits(pictures, images, limits[4]) then met = 4
elseif not fits(redis.call("ZCARD", leases), 1, limits[5]) then met = 5
end

if met == 0 then
  requests, pictures = requests + 1, pictures + images
  redis.call("HSET", account, "rs", requests_start, "rn", requests, "is", images_start, "in", pictures)
  redis.call("ZADD", leases, now + lease_ms, lease)
  put_aside(lease, 1)
end
return { met, requests, requests_start + window_ms - now, pictures, images_start + window_ms - now, month_images, month_device }
`);

/** Says that requests still run: KEYS account, leases; ARGV lease ms, leases. One that had ended by itself is there again. */
export const RENEW = new RedisScript(`${COMMON}
for i = 2, #ARGV do
  if redis.call("ZADD", leases, now + ARGV[1], ARGV[i]) == 1 then put_aside(ARGV[i], 1) end
end
return 1
`);

/**
 * Ends leases and books use, each batch of a gateway once: batches have numbers, and only the one after the last is taken.
 *
 * KEYS account, leases, last batch of this gateway, then one hash of use for each day
 * ARGV number, "force" or "", count of leases, leases, count of months, (month, images, device ms) each, and then (number of
 *      the day's key, field, amount) each
 * -> "booked", "known" where it was before, "gap" where one before it is missing
 */
export const BOOK = new RedisScript(`${COMMON}
local last = tonumber(redis.call("GET", KEYS[3]) or "0")
local number = tonumber(ARGV[1])
if number <= last then return "known" end
if number > last + 1 and ARGV[2] ~= "force" then return "gap" end
redis.call("SET", KEYS[3], number, "EX", 604800)

local i = 3
local count = tonumber(ARGV[i])
for j = i + 1, i + count do
  if redis.call("ZREM", leases, ARGV[j]) == 1 then put_aside(ARGV[j], -1) end
end
i = i + count + 1

count = tonumber(ARGV[i])
for j = i + 1, i + 3 * count, 3 do
  use_month(ARGV[j], ARGV[j + 1], ARGV[j + 2])
end
i = i + 3 * count + 1

for j = i, #ARGV, 3 do
  redis.call("HINCRBY", KEYS[3 + ARGV[j]], ARGV[j + 1], ARGV[j + 2])
end
return "booked"
`);

/**
 * Books by how much totals of one job are above what was known of them.
 *
 * KEYS account, leases, the job's totals, the day's hash of use
 * ARGV month, seconds for which the totals are kept, then (field before its last part, images, device ms, millionths of the
 *      currency that a device ms costs) for each key and model
 * -> [images, device ms] booked
 */
export const BOOK_TOTALS = new RedisScript(`${COMMON}
local images, device = 0, 0
for i = 3, #ARGV, 4 do
  local more = {}
  for j, name in ipairs({ "images", "deviceMs" }) do
    local field = ARGV[i] .. name
    local total = tonumber(ARGV[i + j])
    more[j] = math.max(0, total - tonumber(redis.call("HGET", KEYS[3], field) or "0"))
    if more[j] > 0 then
      redis.call("HSET", KEYS[3], field, ARGV[i + j])
      redis.call("HINCRBY", KEYS[4], field, more[j])
    end
  end
  local cost = math.floor(more[2] * tonumber(ARGV[i + 3]) + 0.5)
  if cost > 0 then redis.call("HINCRBY", KEYS[4], ARGV[i] .. "costMicros", cost) end
  images, device = images + more[1], device + more[2]
end
redis.call("EXPIRE", KEYS[3], ARGV[2])
if images + device > 0 then use_month(ARGV[1], images, device) end
return { images, device }
`);
