-- wrk's script: each request asks for a number of its own, and each answer must be a 200 with a body made from a number that
-- was asked for and not answered yet. A summary follows that the test reads.

local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   asked, waiting, right, wrong, example = 0, {}, 0, 0, ""
end

function request()
   asked = asked + 1
   waiting[tostring(asked)] = true
   return wrk.format("GET", "/number/" .. asked)
end

function response(status, headers, body)
   local number = string.match(body, "^(%d+) ")
   if status == 200 and number and waiting[number] and body == string.rep(number .. " ", 1 + number % 50) then
      waiting[number] = nil
      right = right + 1
   else
      wrong = wrong + 1
      example = status .. " " .. string.sub(body, 1, 100)
   end
end

function done(summary, latency, requests)
   local right, wrong, example, errors = 0, 0, "", summary.errors
   for _, thread in ipairs(threads) do
      right = right + thread:get("right")
      wrong = wrong + thread:get("wrong")
      example = example .. thread:get("example")
   end
   local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
   io.write(string.format("answers=%d right=%d wrong=%d failed=%d %s\n", summary.requests, right, wrong, failed, example))
end
