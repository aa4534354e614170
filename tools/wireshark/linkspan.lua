-- Shows captures of `linkspan record` in Wireshark and tshark: messages by name, their JSON
-- documents, and stdio streams.
--
--   tshark -X lua_script:tools/wireshark/linkspan.lua -r capture.pcapng
--
-- The layout of a packet is in tests/conform/src/capture.rs.

local gcs = Proto("gcs", "GCS bridge")

local procedures = {
  [0x00100101] = "Create",
  [0x00100201] = "Start",
  [0x00100301] = "ShutdownGraceful",
  [0x00100401] = "ShutdownForced",
  [0x00100501] = "ExecuteProcess",
  [0x00100601] = "WaitForProcess",
  [0x00100701] = "SignalProcess",
  [0x00100801] = "ResizeConsole",
  [0x00100901] = "GetProperties",
  [0x00100a01] = "ModifySettings",
  [0x00100b01] = "NegotiateProtocol",
  [0x00100c01] = "DumpStacks",
  [0x00100d01] = "DeleteContainerState",
  [0x00100e01] = "UpdateContainer",
  [0x00100f01] = "LifecycleNotification",
  [0x00200101] = "ModifyServiceSettings",
}
local ways = { [0] = "host to guest", [1] = "guest to host" }
local kinds = { [0] = "frame", [1] = "data", [2] = "opened", [3] = "end" }

local f = gcs.fields
f.way = ProtoField.uint8("gcs.way", "Way", base.DEC, ways)
f.kind = ProtoField.uint8("gcs.kind", "Packet", base.DEC, kinds)
f.port = ProtoField.uint32("gcs.port", "Port", base.HEX)
f.connection = ProtoField.uint32("gcs.connection", "Connection", base.DEC)
f.type = ProtoField.uint32("gcs.type", "Type", base.HEX)
f.message = ProtoField.string("gcs.message", "Message")
f.size = ProtoField.uint32("gcs.size", "Size", base.DEC)
f.id = ProtoField.uint64("gcs.id", "Id", base.DEC)
f.document = ProtoField.string("gcs.document", "Document")
f.data = ProtoField.bytes("gcs.data", "Data")

local short = ProtoExpert.new("gcs.short", "Frame is not whole", expert.group.MALFORMED, expert.severity.WARN)
gcs.experts = { short }

-- The name of a message from the four parts of its type.
local function name_of(number)
  local kind = bit32 and bit32.rshift(number, 28) or math.floor(number / 0x10000000)
  local rest = number - kind * 0x10000000
  local name = procedures[rest]
  if kind == 1 then return name or string.format("0x%08x", number) end
  if kind == 2 then return (name or string.format("0x%08x", number)) .. " response" end
  if kind == 3 and rest == 0x00100101 then return "Notification" end
  return string.format("0x%08x", number)
end

local json = Dissector.get("json")

local function frame(buffer, packet, tree)
  if buffer:len() < 16 then
    tree:add_proto_expert_info(short)
    return "part of a frame"
  end
  local name = name_of(buffer(0, 4):le_uint())
  local size = buffer(4, 4):le_uint()
  tree:add_le(f.type, buffer(0, 4))
  tree:add(f.message, buffer(0, 4), name)
  tree:add_le(f.size, buffer(4, 4))
  tree:add_le(f.id, buffer(8, 8))
  if size ~= buffer:len() then tree:add_proto_expert_info(short) end
  if buffer:len() > 16 then
    tree:add(f.document, buffer(16), buffer(16):string())
    pcall(function() json:call(buffer(16):tvb(), packet, tree) end)
  end
  return string.format("%s id %s", name, tostring(buffer(8, 8):le_uint64()))
end

function gcs.dissector(buffer, packet, root)
  if buffer:len() < 12 or buffer(0, 1):uint() ~= 1 then return 0 end
  local tree = root:add(gcs, buffer())
  local to_host = buffer(1, 1):uint() == 1
  local kind, port = buffer(2, 1):uint(), buffer(4, 4):le_uint()
  tree:add(f.way, buffer(1, 1))
  tree:add(f.kind, buffer(2, 1))
  tree:add_le(f.port, buffer(4, 4))
  tree:add_le(f.connection, buffer(8, 4))
  local place = port == 0x40000000 and "bridge" or string.format("stdio 0x%08x", port)
  local text
  if kind == 0 then
    text = frame(buffer(12):tvb(), packet, tree)
  elseif kind == 1 then
    tree:add(f.data, buffer(12))
    text = string.format("%s %d bytes", place, buffer:len() - 12)
  else
    text = string.format("%s %s", place, kinds[kind] or "?")
  end
  packet.cols.protocol = "GCS"
  packet.cols.src = to_host and "guest" or "host"
  packet.cols.dst = to_host and "host" or "guest"
  packet.cols.info = text
  return buffer:len()
end

DissectorTable.get("wtap_encap"):add(wtap.USER0, gcs)
