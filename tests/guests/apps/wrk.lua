-- Asks for two files in turns, and compares what comes with the files in the folder that is its
-- argument.
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  wrong, answers, turn, files = 0, 0, 0, {}
  for _, name in ipairs({"small", "large"}) do
    local file = assert(io.open(args[1] .. "/" .. name))
    local content = file:read("*a")
    file:close()
    files[#content] = content
  end
end

function request()
  turn = turn + 1
  return wrk.format(nil, turn % 4 == 0 and "/large" or "/small")
end

function response(status, _, body)
  answers = answers + 1
  if status ~= 200 or files[#body] ~= body then wrong = wrong + 1 end
end

function done(summary)
  local e, wrong, answers = summary.errors, 0, 0
  for _, thread in ipairs(threads) do
    wrong, answers = wrong + thread:get("wrong"), answers + thread:get("answers")
  end
  print(string.format("verdict: errors %d %d %d %d %d wrong %d answers %d", e.connect, e.read,
    e.write, e.status, e.timeout, wrong, answers))
end
