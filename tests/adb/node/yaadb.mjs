// Uses the operations of @yume-chan/adb once, through a server or straight to a device; prints the answers as JSON.
// argv[2]: {modules, mode: "server" | "device", port, device, folder, echo, local, key, pairing}
import fs from "node:fs";
import net from "node:net";
import { Readable } from "node:stream";

const settings = JSON.parse(process.argv[2]);
const load = (name) => import(`${settings.modules}/node_modules/@yume-chan/${name}/esm/index.js`);
const { Adb, AdbDaemonTransport, AdbPacket, AdbPacketSerializeStream, AdbServerClient, LinuxFileType } = await load("adb");
const { AdbServerNodeTcpConnector } = await load("adb-server-node-tcp");
const { Consumable, PushReadableStream, ReadableStream, StructDeserializeStream, TextDecoderStream, WritableStream } =
  await load("stream-extra");
const { folder } = settings;
const bytes = (text) => new TextEncoder().encode(text);
const wait = (promise) => promise.then((value) => `no failure: ${value}`, (error) => error.message || error.name);
const same = (one, other) => fs.readFileSync(one).equals(fs.readFileSync(other));

// The library accepts what a device opens only when the handler has returned: serve it after that.
const later = (serve) => void setTimeout(() => serve().catch(() => {}), 0);

async function collect(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts);
}

async function echo(socket) {
  const writer = socket.writable.getWriter();
  const reader = socket.readable.getReader();
  await writer.write(bytes("through"));
  const { value } = await reader.read();
  await socket.close();
  return Buffer.from(value).toString();
}

// One packet stream over TCP, as the library's users on Node make it.
async function packets() {
  const socket = net.connect(settings.port, "127.0.0.1").setNoDelay(true);
  await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  const readable = new PushReadableStream((controller) => {
    socket.on("data", async (data) => {
      socket.pause();
      await controller.enqueue(new Uint8Array(data));
      socket.resume();
    });
    const end = () => {
      try {
        controller.close();
      } catch {}
    };
    socket.on("end", end).on("close", end);
  }).pipeThrough(new StructDeserializeStream(AdbPacket));
  const serializer = new AdbPacketSerializeStream();
  serializer.readable.pipeTo(
    new Consumable.WritableStream({
      write: (chunk) =>
        new Promise((resolve, reject) => socket.write(Buffer.from(chunk), (error) => (error ? reject(error) : resolve()))),
      close: () => void socket.end(),
    }),
  ).catch(() => {});
  return { readable, writable: serializer.writable };
}

const keys = {
  async *iterateKeys() {
    yield { buffer: new Uint8Array(fs.readFileSync(settings.key)), name: "ya@test" };
  },
};

async function direct(window) {
  return new Adb(
    await AdbDaemonTransport.authenticate({
      serial: "straight",
      connection: await packets(),
      credentialStore: keys,
      ...(window === undefined ? {} : { initialDelayedAckBytes: window }),
    }),
  );
}

// What an Adb object can do, the same for both ways to a device.
function operations(adb) {
  const shell = adb.subprocess.shellProtocol;
  const none = adb.subprocess.noneProtocol;
  const source = (path) => Readable.toWeb(fs.createReadStream(path, { highWaterMark: 200000 }));
  return {
    banner: () => [adb.banner.product, adb.banner.model, adb.banner.device, adb.deviceFeatures.length > 10],
    shell: async () => {
      const { stdout, stderr, exitCode } = await shell.spawnWaitText("echo out; echo err >&2; exit 7");
      return [stdout, stderr, exitCode];
    },
    "shell large": async () => (await shell.spawnWait("head -c 3000000 /dev/zero")).stdout.length,
    "shell stdin": async () => {
      const process = await shell.spawn("wc -c");
      const writer = process.stdin.getWriter();
      for (let index = 0; index < 5; index++) await writer.write(new Uint8Array(100000));
      await writer.close();
      return [(await collect(process.stdout)).toString().trim(), await process.exited];
    },
    "shell killed": async () => {
      const process = await shell.spawn("echo $$; exec sleep 1000");
      const reader = process.stdout.getReader();
      const { value } = await reader.read();
      process.exited.catch(() => {});
      await process.kill();
      return Number.parseInt(Buffer.from(value).toString(), 10);
    },
    pty: async () => {
      const process = await shell.pty({ command: "stty size; read x; stty size; exit 4", terminalType: "xterm" });
      const reader = process.output.pipeThrough(new TextDecoderStream()).getReader();
      let said = "";
      const until = async (wanted) => {
        while (!wanted.test(said)) said += (await reader.read()).value;
      };
      await until(/\d+ \d+/);
      await process.resize(33, 101);
      const writer = process.input.getWriter();
      await writer.write(bytes("go\n"));
      await until(/33 101/);
      return await process.exited;
    },
    "shell v1": async () => none.spawnWaitText("echo v1; echo err >&2"),
    "pty v1": async () => {
      const process = await none.pty("echo terminal; exit 0");
      return (await collect(process.output)).toString();
    },
    property: () => adb.getProp("ro.product.model"),
    stat: async () => {
      const sync = await adb.sync();
      try {
        const one = await sync.lstat(`${folder}/link`);
        const other = await sync.stat(`${folder}/link`);
        return [one.type === LinuxFileType.Link, Number(other.size), await sync.isDirectory(folder), await wait(sync.lstat(`${folder}/missing`))];
      } finally {
        await sync.dispose();
      }
    },
    list: async () => {
      const sync = await adb.sync();
      try {
        return (await sync.readdir(folder)).map((entry) => entry.name).filter((name) => ["link", "source", "."].includes(name)).sort();
      } finally {
        await sync.dispose();
      }
    },
    "push and pull": async () => {
      const sync = await adb.sync();
      try {
        await sync.write({ filename: `${folder}/new/there`, file: source(`${folder}/source`), permission: 0o600, mtime: 1600000000 });
        await sync.write({ filename: `${folder}/dry`, file: source(`${folder}/source`), dryRun: true });
        const back = await collect(sync.read(`${folder}/new/there`));
        fs.writeFileSync(`${folder}/back`, back);
        const { mtimeMs } = fs.statSync(`${folder}/new/there`);
        return [same(`${folder}/source`, `${folder}/back`), mtimeMs, fs.existsSync(`${folder}/dry`)];
      } finally {
        await sync.dispose();
      }
    },
    "push refused": async () => {
      const sync = await adb.sync();
      try {
        return await wait(sync.write({ filename: "/proc/nonsense", file: source(`${folder}/source`) }));
      } finally {
        await sync.dispose();
      }
    },
    "pull missing": async () => {
      const sync = await adb.sync();
      return wait(collect(sync.read(`${folder}/missing`)));
    },
    remove: async () => {
      fs.writeFileSync(`${folder}/victim`, "x");
      const said = await adb.rm(`${folder}/victim`, { force: true });
      return [said, fs.existsSync(`${folder}/victim`)];
    },
    tcp: async () => echo(await adb.createSocket(`tcp:${settings.echo}`)),
    local: async () => echo(await adb.createSocket(settings.local)),
    refused: () => wait(adb.createSocket("tcp:1")),
    unknown: () => wait(adb.createSocket("nonsense:x")),
    reverse: async () => {
      const place = `${folder}/reverse-${process.pid}-${Date.now()}`;
      const name = `localfilesystem:${place}`;
      const address = await adb.reverse.add(name, (socket) =>
        later(async () => {
          await socket.writable.getWriter().write(bytes("from the host"));
          await socket.close();
        }),
      );
      const said = await new Promise((resolve, reject) => {
        let text = "";
        net.connect({ path: place }).on("data", (data) => (text += data)).on("end", () => resolve(text)).on("error", reject);
      });
      const listed = (await adb.reverse.list()).map((one) => one.localName);
      await adb.reverse.remove(name);
      const after = (await adb.reverse.list()).length;
      return [address === name, said, listed.includes(name), after, await wait(adb.reverse.remove(name))];
    },
    "reverse port": async () => {
      // Straight to the device nobody but the library itself can serve what the device opens.
      const port =
        settings.mode === "server"
          ? await adb.reverse.addExternal("tcp:0", `tcp:${settings.echo}`)
          : await adb.reverse.add("tcp:0", (socket) =>
              later(async () => {
                const writer = socket.writable.getWriter();
                for await (const data of socket.readable) await writer.write(bytes(Buffer.from(data).toString().toUpperCase()));
              }),
            );
      const said = await new Promise((resolve, reject) => {
        const socket = net.connect(Number(port.slice(4)), "127.0.0.1").on("error", reject);
        socket.on("data", (data) => {
          socket.end();
          resolve(data.toString());
        });
        socket.write("through");
      });
      await adb.reverse.removeAll();
      return [said, (await adb.reverse.list()).length];
    },
    framebuffer: async () => {
      const { width, height, bpp, data } = await adb.framebuffer();
      return [width, height, bpp, [...data]];
    },
    source: async () => (await collect((await adb.createSocket("source:500000")).readable)).length,
    root: () => wait(adb.createSocketAndWait("root:")),
    tcpip: () => adb.tcpip.setPort(5557),
    "tcpip disable": () => adb.tcpip.disable(),
    "many shells": async () => {
      const all = await Promise.all(Array.from({ length: 50 }, (_, index) => shell.spawnWaitText(`echo ${index}`)));
      return all.every(({ stdout }, index) => stdout === `${index}\n`);
    },
    reboot: async () => adb.power.reboot("recovery"),
  };
}

function servers(client) {
  const device = { serial: settings.device };
  return {
    version: () => client.getVersion(),
    features: async () => (await client.getServerFeatures()).includes("shell_v2"),
    connect: () => client.wireless.connect(settings.device),
    "connect again": () => wait(client.wireless.connect(settings.device)),
    "connect to nobody": () => wait(client.wireless.connect("127.0.0.1:1")),
    devices: async () => (await client.getDevices()).map(({ serial, state, model }) => [serial, state, model]),
    selectors: async () => {
      const [{ transportId }] = await client.getDevices();
      const found = [];
      for (const selector of [undefined, { transportId }, device, { tcp: true }])
        found.push((await client.getDeviceFeatures(selector)).transportId === transportId);
      return [...found, await wait(client.getDeviceFeatures({ usb: true }))];
    },
    wait: () => wait(client.waitFor(device, "device")),
    track: async () => {
      const observer = await client.trackDevices();
      const next = (event) => new Promise((resolve) => event((list) => resolve(list.map((one) => one.serial))));
      const current = observer.current.map((one) => one.serial);
      const removed = next(observer.onDeviceRemove);
      await client.wireless.disconnect(settings.device);
      const gone = await removed;
      const added = next(observer.onDeviceAdd);
      await client.wireless.connect(settings.device);
      const back = await added;
      await observer.stop();
      return [current, gone, back];
    },
    reconnect: async () => {
      await client.reconnectDevice(device);
      await client.waitFor(device, "device");
      await client.reconnectDevice("offline");
    },
    mdns: async () => [await client.mDns.check(), await client.mDns.getServices()],
    "pair with a wrong code": () => wait(client.wireless.pair(settings.pairing, "000000")),
    pair: () => client.wireless.pair(settings.pairing, "123456"),
  };
}

const answers = {};
async function run(group, prefix = "") {
  for (const [name, use] of Object.entries(group)) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("no answer within 15 s")), 30000);
    });
    try {
      answers[prefix + name] = await Promise.race([use(), late]);
    } catch (error) {
      answers[prefix + name] = `FAILED ${error.stack}`;
    }
    clearTimeout(timer);
  }
}

if (settings.mode === "server") {
  const client = new AdbServerClient(new AdbServerNodeTcpConnector({ host: "127.0.0.1", port: settings.port }));
  await run(servers(client));
  const adb = await client.createAdb({ serial: settings.device });
  await run(operations(adb));
  await run({ close: () => adb.close(), disconnect: () => client.wireless.disconnect(settings.device), kill: () => client.killServer() });
} else {
  for (const window of [undefined, 0]) {
    const adb = await direct(window);
    await run(operations(adb), window === 0 ? "one by one: " : "");
    await run({ close: () => adb.close() }, window === 0 ? "one by one: " : "");
  }
}
process.stdout.write(JSON.stringify(answers, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
process.exit(0);
