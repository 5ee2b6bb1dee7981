// Uses every operation of @devicefarmer/adbkit once; prints what each answered as JSON.
// argv[2]: {port, device, folder, echo, apk, pid, mode}
const { createRequire } = require("node:module");
const fs = require("node:fs");
const net = require("node:net");

const settings = JSON.parse(process.argv[2]);
const { Adb } = createRequire(settings.modules + "/")("@devicefarmer/adbkit");
const { folder } = settings;
const client = Adb.createClient({ host: "127.0.0.1", port: settings.port });
const device = client.getDevice(settings.device);
const text = async (stream) => (await Adb.util.readAll(stream)).toString();
const once = (emitter, name) =>
  new Promise((resolve, reject) => {
    emitter.once(name, resolve);
    emitter.once("error", reject);
  });
const failure = (promise) =>
  promise.then(
    (value) => `no failure: ${value}`,
    (error) => error.message,
  );

// A tracker and the first thing that it adds, which may come with the answer to the request.
const watch = (promise) => promise.then((tracker) => ({ tracker, first: once(tracker, "add") }));

// A connection through `open` to the echo server, which answers in capitals.
async function echo(stream) {
  stream.write("through");
  const data = await once(stream, "data");
  stream.end();
  return data.toString();
}

const host = {
  version: () => client.version(),
  connect: () => client.connect(...settings.device.split(":")),
  "connect again": () => client.connect(settings.device),
  "connect to nobody": () => failure(client.connect("127.0.0.1", 1)),
  devices: () => client.listDevices(),
  paths: async () => (await client.listDevicesWithPaths()).map(({ id, type, path }) => [id, type, path]),
  track: async () => {
    const { tracker, first } = await watch(client.trackDevices());
    const added = await first;
    const gone = once(tracker, "remove");
    await client.disconnect(settings.device);
    const removed = await gone;
    const back = once(tracker, "add");
    await client.connect(settings.device);
    const again = await back;
    tracker.end();
    return [added.id, removed.id, again.id, again.type];
  },
};

const about = {
  wait: () => device.waitForDevice(),
  serial: () => device.getSerialNo(),
  state: () => device.getState(),
  path: () => device.getDevicePath(),
  attach: () => failure(device.attach()),
  detach: () => failure(device.detach()),
  properties: () => device.getProperties(),
  booted: () => device.waitBootComplete(),
};

const shell = {
  shell: async () => text(await device.shell("echo hi; echo err >&2; exit 3")),
  "shell array": async () => text(await device.shell(["printf", "%s|", "a b", "c'd"])),
  "shell large": async () => (await text(await device.shell("head -c 1000000 /dev/zero | tr '\\0' x"))).length,
  tcp: async () => echo(await device.openTcp(settings.echo)),
  "tcp refused": () => failure(device.openTcp(1)),
  local: async () => echo(await device.openLocal(settings.local)),
  log: () => failure(device.openLog("main")),
  framebuffer: async () => {
    const stream = await device.framebuffer("raw");
    const pixels = await Adb.util.readAll(stream);
    return [stream.meta.width, stream.meta.height, stream.meta.format, [...pixels]];
  },
  "proc stat": async () => {
    const stat = await device.openProcStat();
    const loads = await once(stat, "load");
    stat.end();
    return Object.keys(loads).length > 0;
  },
};

const sync = {
  push: async () => {
    await once(await device.push(`${folder}/source`, `${folder}/made/there`, 0o640), "end");
    const transfer = await device.pull(`${folder}/made/there`);
    const file = fs.createWriteStream(`${folder}/back`);
    transfer.pipe(file);
    await once(file, "finish");
    return [transfer.stats.bytesTransferred, fs.readFileSync(`${folder}/source`).equals(fs.readFileSync(`${folder}/back`))];
  },
  "push a stream": async () => {
    await once(await device.push(fs.createReadStream(`${folder}/source`), `${folder}/streamed`), "end");
    return fs.readFileSync(`${folder}/source`).equals(fs.readFileSync(`${folder}/streamed`));
  },
  "push refused": async () =>
    failure(device.push(`${folder}/source`, "/proc/nonsense").then((transfer) => once(transfer, "end"))),
  "pull missing": async () => {
    const transfer = await device.pull(`${folder}/missing`);
    return new Promise((resolve) => transfer.resume().once("error", (error) => resolve(error.message)));
  },
  stat: async () => {
    const found = await device.stat(`${folder}/source`);
    return [found.isFile(), found.size, found.mtimeMs];
  },
  "stat missing": () => failure(device.stat(`${folder}/missing`)),
  list: async () => (await device.readdir(folder)).map((entry) => entry.name).sort(),
  "one stream": async () => {
    const service = await device.syncService();
    const first = await service.stat(`${folder}/source`);
    const second = await service.readdir(`${folder}/made`);
    service.end();
    return [first.size, second.map((entry) => entry.name)];
  },
};

const forwards = {
  forward: async () => {
    const probe = net.createServer().listen(0, "127.0.0.1");
    await once(probe, "listening");
    const { port } = probe.address();
    await new Promise((resolve) => probe.close(resolve));
    await device.forward(`tcp:${port}`, `tcp:${settings.echo}`);
    const answer = await echo(net.connect(port, "127.0.0.1"));
    const listed = (await device.listForwards()).map((one) => [one.serial, one.remote]);
    return [answer, listed];
  },
  reverse: async () => {
    const name = `localabstract:adbkit-${process.pid}`;
    const made = await device.reverse(name, `tcp:${settings.echo}`);
    const listed = (await device.listReverses()).filter((one) => one.remote === name).map((one) => one.local);
    return [made, listed, await echo(await device.openLocal(name))];
  },
};

const packages = {
  install: () => device.install(settings.apk),
  packages: () => device.getPackages(),
  installed: () => device.isInstalled("org.example.x"),
  clear: () => device.clear("org.example.x"),
  uninstall: () => device.uninstall("org.example.x"),
  "not installed": () => device.isInstalled("org.example.x"),
  "install remote": async () => {
    await once(await device.push(settings.apk, `${folder}/remote.apk`), "end");
    return device.installRemote(`${folder}/remote.apk`);
  },
  "install nonsense": () => {
    fs.copyFileSync(`${folder}/source`, `${folder}/nonsense`); // it removes the file afterwards
    return failure(device.installRemote(`${folder}/nonsense`));
  },
  jdwp: async () => {
    const { tracker, first } = await watch(device.trackJdwp());
    const pid = await first;
    tracker.end();
    return pid;
  },
  logcat: async () => (await text(await device.shell("logcat -d"))).includes("test    : a line"),
};

const control = {
  root: () => failure(device.root()),
  remount: () => device.remount(),
  tcpip: () => device.tcpip(5557),
  usb: () => device.usb(),
  reboot: () => device.reboot(),
  kill: () => client.kill(),
};

// adbkit as a device: our server connects to its bridge, which leads to our adbd again.
async function bridge() {
  const server = client.createTcpUsbBridge(settings.device, {});
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const serial = `127.0.0.1:${server.server.address().port}`;
  // As with adb's own server: our key is asked about, and the connection comes once it is accepted.
  const said = await failure(client.connect(serial));
  const bridged = client.getDevice(serial);
  await bridged.waitForDevice();
  const answers = [
    said === `failed to authenticate to ${serial}`,
    await text(await bridged.shell("echo bridged")),
    (await text(await bridged.shell("head -c 300000 /dev/zero | tr '\\0' x"))).length,
  ];
  await once(await bridged.push(`${folder}/source`, `${folder}/bridged`), "end");
  answers.push(fs.readFileSync(`${folder}/source`).equals(fs.readFileSync(`${folder}/bridged`)));
  await client.disconnect(serial);
  server.close();
  server.end();
  return answers;
}

async function main() {
  const answers = {};
  for (const group of [host, about, shell, sync, forwards, packages, { bridge }, control])
    for (const [name, use] of Object.entries(group)) {
      if (name in answers) throw new Error(`two operations are called ${name}`);
      let timer;
      const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error("no answer within 15 s")), 30000);
      });
      try {
        answers[name] = await Promise.race([use(), late]);
      } catch (error) {
        answers[name] = `FAILED ${error.stack}`;
      }
      clearTimeout(timer);
    }
  process.stdout.write(JSON.stringify(answers));
  process.exit(0);
}
main();
