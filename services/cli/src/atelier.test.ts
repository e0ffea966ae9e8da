import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";

describe("atelier up", () => {
  it("starts worker and gateway, prints the URL and a curl line, and stops gateway first on Ctrl-C", async () => {
    const atelier = start("up", "--port", "0", "--models", "/a,/b", "--workers", "2");
    await atelier.printed("Ctrl-C stops it");
    expect(atelier.stdout).toMatch(/Atelier is open at http:\/\/127\.0\.0\.1:\d+/);
    expect(atelier.stdout).toContain("No API key is configured: only this machine can reach it");
    expect(atelier.stdout).toMatch(/curl -s http:\/\/127\.0\.0\.1:\d+\/generate .*"prompt":"国潮风T恤, 白色背景"/);

    atelier.signal("SIGINT");
    expect(await atelier.exitCode).toBe(0);
    expect(log().map(withoutPid).sort()).toEqual([
      "gateway SIGTERM",
      "gateway jobs",
      expect.stringMatching(/^gateway listens, pid/),
      "gateway started with 2 workers",
      "jobs SIGTERM",
      expect.stringMatching(/^jobs started on sqlite:/),
      "w1 SIGTERM",
      "w1 is drained for 3000 ms",
      expect.stringMatching(/^w1 pulls from sqlite:/),
      "w1 started on /a,/b by cpu",
      "w2 SIGTERM",
      "w2 is drained for 3000 ms",
      expect.stringMatching(/^w2 pulls from sqlite:/),
      "w2 started on /a,/b by cpu",
    ]);
    const stops = log().filter((line) => line.endsWith("SIGTERM"));
    expect(stops.slice(0, 2)).toEqual(["gateway SIGTERM", "jobs SIGTERM"]);
  });

  it("says so where callers need a key, and sends one in its curl line", async () => {
    const atelier = start("up", "--port", "0", { FAKE_GATEWAY: "asks-for-keys" });
    await atelier.printed("Ctrl-C stops it");
    expect(atelier.stdout).toContain("It asks callers for API keys");
    expect(atelier.stdout).toContain('-H "authorization: Bearer $ATELIER_API_KEY"');
  });

  it("uses the embedded model when none is named", async () => {
    const atelier = start("up", "--port", "0");
    await atelier.printed("Ctrl-C stops it");
    expect(log()[0]).toContain("started on /repository/deploy/models/atelier-tiny by cpu");
  });

  it("takes several signals close together for one, since npm and the launcher pass Ctrl-C on", async () => {
    const atelier = start("up", "--port", "0");
    await atelier.printed("Ctrl-C stops it");
    atelier.signal("SIGINT");
    atelier.signal("SIGINT");
    atelier.signal("SIGTERM");
    expect(await atelier.exitCode).toBe(0);
    expect(log()).toContain("w1 SIGTERM");
  });

  it("ends everything at once on a second Ctrl-C", async () => {
    const atelier = start("up", "--port", "0", { FAKE_WORKER: "stays" });
    await atelier.printed("Ctrl-C stops it");
    atelier.signal("SIGINT");
    await logged("w1 SIGTERM");
    await sleep(500);
    atelier.signal("SIGINT");
    expect(await atelier.exitCode).toBe(130);
    expect(isAlive(pidOf("w1"))).toBe(false);
  });

  it("can be stopped while it is still starting", async () => {
    const atelier = start("up", "--port", "0", { FAKE_WORKER: "slow" });
    await logged("gateway started with 1 workers");
    atelier.signal("SIGINT");
    expect(await atelier.exitCode).toBe(0);
    expect(atelier.stderr).not.toContain("error");
    expect(isAlive(pidOf("w1"))).toBe(false);
  });

  it("leaves no process behind when it is killed", async () => {
    const atelier = start("up", "--port", "0");
    await atelier.printed("Ctrl-C stops it");
    atelier.signal("SIGKILL");
    await logged("w1 lost its parent");
  });

  it("stops when npm is stopped, whose shell passes no signal on", async () => {
    const atelier = start("up", "--port", "0", { npm_lifecycle_event: "start", IN_SHELL: "yes" });
    await atelier.printed("Ctrl-C stops it");
    atelier.signal("SIGTERM"); // to the shell
    await logged("w1 SIGTERM");
    await until("the end of the worker", () => !isAlive(pidOf("w1")));
  });

  it("names a port that is taken and a free one, before it starts anything", async () => {
    const taken = await listenSomewhere();
    const { port } = taken.address() as AddressInfo;
    const atelier = start("up", "--port", String(port));
    expect(await atelier.exitCode).toBe(1);
    taken.close();
    expect(atelier.stderr).toMatch(
      new RegExp(
        `port ${port} is taken by another program. Choose another: atelier up --port \\d+\n端口 ${port} 已被占用`,
      ),
    );
    expect(log()).toEqual([]);
  });

  it("says so when what holds the port is an Atelier, and advises in the words of npm start", async () => {
    const first = start("up", "--port", "0");
    await first.printed("Ctrl-C stops it");
    const second = start("up", "--port", String(portOf(first.stdout)), { npm_lifecycle_event: "start" });
    expect(await second.exitCode).toBe(1);
    expect(second.stderr).toMatch(/taken by an Atelier that runs already. Choose another: npm start -- --port \d+/);
  });

  it("names what failed to start and why, and stops the rest", async () => {
    const atelier = start("up", "--port", "0", { FAKE_WORKER: "fails" });
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toContain("error: worker w1: no model at /nowhere");
  });

  it("names what ended without a word", async () => {
    const atelier = start("up", "--port", "0", { FAKE_WORKER: "dies" });
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toContain("error: worker w1: it ended with exit code 3");
  });

  it("starts a worker that dies again at its address", async () => {
    const atelier = start("up", "--port", "0");
    await atelier.printed("Ctrl-C stops it");
    process.kill(pidOf("w1"), "SIGKILL");
    await atelier.said("worker w1 is back");
    expect(atelier.stderr).toContain("worker w1 is gone: it was ended by SIGKILL. Starting it again in 0.25 s");
    const addresses = log().flatMap((line) => /^w1 started .* listens at (\S+)/.exec(line)?.[1] ?? []);
    expect(addresses).toHaveLength(2);
    expect(addresses[0]).toBe(addresses[1]);
  });

  it("ends with the gateway", async () => {
    const atelier = start("up", "--port", "0", { FAKE_GATEWAY: "dies-later" });
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toContain("error: the gateway is gone: it ended with exit code 5");
    expect(log()).toContain("w1 SIGTERM");
  });
});

describe("atelier up, for bulk jobs", () => {
  it("keeps them in the user's data folder, the same at each start, and says where", async () => {
    for (const _ of [1, 2]) {
      const atelier = start("up", "--port", "0");
      await atelier.printed("Ctrl-C stops it");
      const kept = join(folder, "home/atelier/jobs");
      expect(atelier.stdout).toContain(`items in ${kept}/queue.db, pictures in ${kept}/objects`);
      expect(log()).toContain(`w1 pulls from sqlite:${kept}/queue.db into file:${kept}/objects`);
      atelier.signal("SIGKILL"); // nothing is left that keeps the folder from the next
      await atelier.exitCode;
    }
  });

  it("tells the gateway and the jobs service of each other, with one secret that nobody else knows", async () => {
    const atelier = start("up", "--port", "0");
    await atelier.printed("Ctrl-C stops it");
    const [, at, secret] = /^gateway jobs at http:\/\/(\S+) with (\S{43})$/m.exec(log().join("\n"))!;
    const jobs = log().find((line) => line.startsWith("jobs started"));
    expect(jobs).toContain(`for http://127.0.0.1:${portOf(atelier.stdout)} with ${secret} listens at ${at} `);
  });

  it("starts the jobs service that dies again at its address", async () => {
    const atelier = start("up", "--port", "0");
    await atelier.printed("Ctrl-C stops it");
    process.kill(pidOf("jobs"), "SIGKILL");
    await atelier.said("jobs is back");
    const addresses = log().flatMap((line) => /^jobs started .* listens at (\S+)/.exec(line)?.[1] ?? []);
    expect(addresses).toEqual([addresses[0], addresses[0]]);
  });

  it("names what keeps the jobs service from starting", async () => {
    const atelier = start("up", "--port", "0", { FAKE_JOBS: "fails" });
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toContain("error: jobs: no queue at /nowhere");
  });

  it("takes another folder, also for the gateway, and another store and queue", async () => {
    const options = ["--data", "here", "--nats", "nats://queue:4222", "--objects", "s3://pictures/atelier"];
    const atelier = start("up", "--port", "0", ...options);
    await atelier.printed("Ctrl-C stops it");
    expect(log()).toContain("w1 pulls from nats://queue:4222 into s3://pictures/atelier");
    expect(log()).toContain(`gateway keeps in ${realpathSync(folder)}/here`);
    expect(atelier.stdout).toContain("items in nats://queue:4222, pictures in s3://pictures/atelier");
  });

  it("leaves queue and store to the environment when it names them", async () => {
    const env = { ATELIER_QUEUE: "nats://ops:secret@queue:4222", ATELIER_OBJECTS: "file:/pictures" };
    const atelier = start("up", "--port", "0", env);
    await atelier.printed("Ctrl-C stops it");
    expect(log()).toContain(`w1 pulls from ${env.ATELIER_QUEUE} into ${env.ATELIER_OBJECTS}`);
    expect(atelier.stdout).toContain("items in nats://***@queue:4222, pictures in /pictures");
  });

  it("has none with --no-jobs, whatever the environment says", async () => {
    const atelier = start("up", "--port", "0", "--no-jobs", { ATELIER_QUEUE: "nats://queue:4222" });
    await atelier.printed("Ctrl-C stops it");
    expect(log().filter((line) => /jobs|pulls/.test(line))).toEqual([]);
    expect(atelier.stdout).not.toContain("atelier jobs");
  });

  it("has none beside a system that keeps its own in the same folder, and refuses where that folder was named", async () => {
    const first = start("up", "--port", "0");
    await first.printed("Ctrl-C stops it");
    const second = start("up", "--port", "0");
    await second.printed("Ctrl-C stops it");
    expect(second.stderr).toContain("bulk jobs are off: another Atelier that runs keeps its bulk jobs in");
    const named = start("up", "--port", "0", "--data", "home/atelier");
    expect(await named.exitCode).toBe(1);
    expect(named.stderr).toContain("error: another Atelier that runs keeps its bulk jobs in");
  });

  it("has none where the user's folder cannot be written, and serves all the same", async () => {
    writeFileSync(join(folder, "file"), "");
    const atelier = start("up", "--port", "0", { XDG_DATA_HOME: join(folder, "file") });
    await atelier.printed("Ctrl-C stops it");
    expect(atelier.stderr).toMatch(
      /bulk jobs are off: the data folder \S+\/file\/atelier cannot be used \(--data\): ENOTDIR/,
    );
  });

  it("names a folder that cannot be used", async () => {
    writeFileSync(join(folder, "file"), "");
    const atelier = start("up", "--port", "0", "--data", "file/data");
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toContain("file/data cannot be used (--data): ENOTDIR");
    expect(log()).toEqual([]);
  });
});

describe("atelier up --redis", () => {
  it("tells the gateway which Redis to use", async () => {
    const atelier = start("up", "--port", "0", "--redis", "redis://cache:6379");
    await atelier.printed("Ctrl-C stops it");
    expect(log()).toContain("gateway started with 1 workers and redis://cache:6379");
    expect(log().filter((line) => line.startsWith("redis"))).toEqual([]);
  });

  it("leaves it to the environment when it is not given", async () => {
    const atelier = start("up", "--port", "0", { ATELIER_REDIS: "redis://from-environment" });
    await atelier.printed("Ctrl-C stops it");
    expect(log()).toContain("gateway started with 1 workers and redis://from-environment");
  });
});

describe("atelier up --cluster", () => {
  it("starts a Redis, a NATS, two workers and two gateways that share them, and stops what is behind last", async () => {
    const atelier = start("up", "--cluster", "--port", "0");
    await atelier.printed("Ctrl-C stops it");
    expect(atelier.stdout).toMatch(/Atelier is open at http:\/\/127\.0\.0\.1:\d+ and http:\/\/127\.0\.0\.1:\d+ /);
    const redis = /^redis started listens at (\S+)/m.exec(log().join("\n"))![1];
    expect(log().filter((line) => line === `gateway started with 2 workers and redis://${redis}`)).toHaveLength(2);
    expect(atelier.stderr).toContain(`redis at redis://${redis}`);
    const kept = join(folder, "home/atelier/cluster");
    const nats = new RegExp(`^nats started in ${kept}/nats listens at (\\S+)`, "m").exec(log().join("\n"))![1];
    expect(log()).toContain(`w2 pulls from nats://${nats} into file:${kept}/objects`);
    expect(log().filter((line) => line.startsWith("gateway jobs at"))).toHaveLength(2);
    expect(log().find((line) => line.startsWith("jobs started"))).toMatch(/ for http:\S+:\d+,http:\S+:\d+ with /);

    atelier.signal("SIGINT");
    expect(await atelier.exitCode).toBe(0);
    const stops = log().flatMap((line) => /^(\w+) SIGTERM/.exec(line)?.[1] ?? []);
    expect(stops.map((name) => name.replace(/^w\d/, "worker"))).toEqual([
      ...["gateway", "gateway"],
      "jobs",
      ...["worker", "worker"],
      "redis",
      "nats",
    ]);
  });

  it("takes the port and the next, and says so when the next is taken, before it starts anything", async () => {
    const taken = await listenSomewhere();
    const { port } = taken.address() as AddressInfo;
    const atelier = start("up", "--cluster", "--port", String(port - 1));
    expect(await atelier.exitCode).toBe(1);
    taken.close();
    expect(atelier.stderr).toContain(
      `port ${port} is taken by another program (2 gateways take ${port - 1} to ${port}). Choose another`,
    );
    expect(log()).toEqual([]);
  });

  it("starts a gateway or the Redis that dies again at its address", async () => {
    const atelier = start("up", "--cluster", "--port", "0");
    await atelier.printed("Ctrl-C stops it");
    const [pid, port] = /pid (\d+) at (\d+)/.exec(log().find((line) => line.startsWith("gateway listens"))!)!.slice(1);
    process.kill(Number(pid), "SIGKILL");
    await until("the gateway's return", () => /gateway g[12] is back/.test(atelier.stderr));
    expect(log().filter((line) => line.endsWith(` at ${port}`))).toHaveLength(2);
    process.kill(pidOf("redis"), "SIGKILL");
    await atelier.said("redis is back");
    const addresses = log().flatMap((line) => /^redis started listens at (\S+)/.exec(line)?.[1] ?? []);
    expect(addresses).toEqual([addresses[0], addresses[0]]);
  });

  it("starts no Redis of its own beside one that is named", async () => {
    const atelier = start("up", "--cluster", "--port", "0", "--redis", "redis://cache", "--workers", "1");
    await atelier.printed("Ctrl-C stops it");
    expect(log().filter((line) => line === "gateway started with 1 workers and redis://cache")).toHaveLength(2);
    expect(log().filter((line) => line.startsWith("redis"))).toEqual([]);
  });

  it("goes on without bulk jobs when there is no NATS to be had, and says why", async () => {
    const atelier = start("up", "--cluster", "--port", "0", { FAKE_NATS: "fails" });
    await atelier.printed("Ctrl-C stops it");
    expect(atelier.stderr).toContain("bulk jobs are off: nats: nats-server is not to be had");
    expect(log().filter((line) => /jobs|pulls/.test(line))).toEqual([]);
  });

  it("says why when there is no Redis to be had, and starts no gateway", async () => {
    const atelier = start("up", "--cluster", "--port", "0", { FAKE_REDIS: "fails" });
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toContain("error: redis: redis-server is not to be had");
    expect(log().filter((line) => line.startsWith("gateway"))).toEqual([]);
  });
});

describe("atelier generate", () => {
  it("starts a system for the call when none runs, writes the picture and stops the system", async () => {
    const atelier = start("generate", "国潮风T恤", "-o", "tee.png");
    expect(await atelier.exitCode).toBe(0);
    expect(readFileSync(join(folder, "tee.png"), "utf8")).toBe("picture 0");
    expect(atelier.stdout).toMatch(/^tee\.png {2}512x512 {2}seed 41 {2}\d+\.\d s\n$/);
    expect(atelier.stderr).toContain("starting one for this call");
    expect(log()).toContain('gateway drew {"prompt":"国潮风T恤","format":"png"}');
    expect(log().at(-1)).toBe("w1 SIGTERM");
  });

  it("uses the system that runs at the default address, or at the one that ATELIER_URL names", async () => {
    const url = await runningUrl();
    for (const env of [{ FAKE_DEFAULT_URL: url }, { ATELIER_URL: url }]) {
      const atelier = start("generate", "a mug", "-o", "mug.jpg", env);
      expect(await atelier.exitCode).toBe(0);
      expect(atelier.stderr).toBe("");
    }
    expect(log().filter((line) => line === 'gateway drew {"prompt":"a mug","format":"jpeg"}')).toHaveLength(2);
    expect(log().filter((line) => line.startsWith("w1 started"))).toHaveLength(1);
  });

  it("sends every option under the API's name, and leaves out what was not given", async () => {
    const url = await runningUrl();
    const options = ["-n", "模糊", "-s", "256x384", "--steps", "8", "--seed", "7", "--guidance", "2.5"];
    const atelier = start(
      "generate",
      "a mug",
      ...options,
      "--sampler",
      "euler",
      "--quality",
      "80",
      "--model",
      "m",
      "--url",
      url,
    );
    expect(await atelier.exitCode).toBe(0);
    expect(drawn()).toEqual({
      prompt: "a mug",
      negative_prompt: "模糊",
      width: 256,
      height: 384,
      steps: 8,
      seed: 7,
      guidance_scale: 2.5,
      sampler: "euler",
      quality: 80,
      model: "m",
    });
    expect(readdirSync(folder)).toContain("atelier-7.png");
  });

  it("sends a picture to start from, and says when it cannot be read", async () => {
    const url = await runningUrl();
    writeFileSync(join(folder, "mug.png"), "the bytes of a picture");
    const atelier = start("generate", "a mug", "--init", "mug.png", "--strength", "0.4", "-o", "x.png", "--url", url);
    expect(await atelier.exitCode).toBe(0);
    const init_image = Buffer.from("the bytes of a picture").toString("base64");
    expect(drawn()).toEqual({ prompt: "a mug", init_image, strength: 0.4, format: "png" });

    const missing = start("generate", "a mug", "--init", "nowhere.png", "-o", "x.png", "--url", url);
    expect(await missing.exitCode).toBe(1);
    expect(missing.stderr).toContain("nowhere.png cannot be read: ENOENT");
  });

  it("numbers several pictures and gives each its seed", async () => {
    const url = await runningUrl();
    const atelier = start("generate", "a mug", "-o", "mug.webp", "--num-images", "2", "--url", url);
    expect(await atelier.exitCode).toBe(0);
    expect(readFileSync(join(folder, "mug-2.webp"), "utf8")).toBe("picture 1");
    expect(atelier.stdout).toMatch(/mug-1\.webp .* seed 41 [\s\S]*mug-2\.webp .* seed 42 /);
  });

  it("prints the receipt without the pictures with --json, and nothing else", async () => {
    const url = await runningUrl();
    const atelier = start("generate", "a mug", "-o", "mug.png", "--json", "--url", url);
    expect(await atelier.exitCode).toBe(0);
    expect(JSON.parse(atelier.stdout)).toEqual({
      files: ["mug.png"],
      format: "png",
      width: 512,
      height: 512,
      seed: 41,
      model: "fake",
      receipt: { steps: 25, simulated: false },
    });
  });

  it("prints the server's own words and the field when it refuses", async () => {
    const atelier = start("generate", "refuse", "-o", "x.png", "--url", await runningUrl());
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toBe("error: steps is 0 (field steps) [INVALID_REQUEST]\n");
    expect(readdirSync(folder)).not.toContain("x.png");
  });

  it("says in a pipe how far the picture is only when it is to be verbose", async () => {
    const url = await runningUrl();
    const quiet = start("generate", "a mug", "-o", "mug.png", "--url", url);
    const verbose = start("generate", "a mug", "-o", "mug.png", "--verbose", "--url", url);
    expect(await quiet.exitCode).toBe(0);
    expect(quiet.stderr).toBe("");
    expect(await verbose.exitCode).toBe(0);
    expect(verbose.stderr).toBe(
      "encoding the text 0/37 steps\ndenoising 12/37 steps\ndecoding the image 37/37 steps\n",
    );
  });

  it("takes a plain answer where a gateway sends no events", async () => {
    const atelier = start("generate", "plain", "-o", "x.png", "--verbose", "--url", await runningUrl());
    expect(await atelier.exitCode).toBe(0);
    expect(atelier.stderr).toBe("");
    expect(readFileSync(join(folder, "x.png"), "utf8")).toBe("picture 0");
  });

  it.each([
    { prompt: "lose", says: /^error: worker w1 was lost \(field prompt\) \[WORKER_LOST\]\n$/ },
    { prompt: "cut", says: /^error: http:\S+\/generate ended its answer before the picture came\n$/ },
  ])("exits 1 and writes no file when it fails on the way: $prompt", async ({ prompt, says }) => {
    const atelier = start("generate", prompt, "-o", "x.png", "--url", await runningUrl());
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toMatch(says);
    expect(readdirSync(folder)).not.toContain("x.png");
  });

  it("says what to do when nothing answers at the address given", async () => {
    const atelier = start("generate", "a mug", "--url", nowhere);
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toContain(`no answer from ${nowhere}/readyz: connect ECONNREFUSED`);
    expect(atelier.stderr).toContain("npm start");
    expect(log()).toEqual([]);
  });

  it("closes the connection on Ctrl-C, which cancels the request, and leaves no file", async () => {
    const url = await runningUrl();
    const atelier = start("generate", "hang", "-o", "x.png", "--url", url);
    await logged('gateway drew {"prompt":"hang","format":"png"}');
    atelier.signal("SIGINT");
    expect(await atelier.exitCode).toBe(130);
    await logged("gateway caller gone");
    expect(readdirSync(folder)).not.toContain("x.png");
  });

  it("names a file that cannot be written, before it asks for the picture", async () => {
    writeFileSync(join(folder, "file"), "");
    const atelier = start("generate", "a mug", "-o", "file/x.png", "--url", await runningUrl());
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toContain("file/x.png cannot be written: ENOTDIR");
    expect(log().filter((line) => line.startsWith("gateway drew"))).toEqual([]);
  });

  it.each([
    { args: ["generate"], says: "missing required argument 'prompt'" },
    { args: ["generate", "a", "-s", "big"], says: "WIDTHxHEIGHT" },
    { args: ["generate", "a", "--steps", "-1"], says: "whole number" },
    { args: ["generate", "a", "-o", "a.bmp"], says: "a.bmp: name it .png, .jpg or .webp" },
    { args: ["generate", "a", "--url", "localhost"], says: "--url" },
    { args: ["up", "--port", "99999"], says: "whole number from 0 to 65535" },
    { args: ["up", "--nats", "http://queue"], says: "nats://127.0.0.1:4222" },
    { args: ["down"], says: "unknown command 'down'" },
  ])("exits 2 when it is not understood: $args", async ({ args, says }) => {
    const atelier = start(...args);
    expect(await atelier.exitCode).toBe(2);
    expect(atelier.stderr).toContain(says);
  });
});

describe("atelier models ls", () => {
  it("prints a table of what the system serves", async () => {
    const atelier = start("models", "ls", "--url", await runningUrl());
    expect(await atelier.exitCode).toBe(0);
    expect(atelier.stdout.split("\n")).toEqual([
      "ID    FAMILY  NATIVE   MAX         DEFAULTS            STATUS        WEIGHTS  WORKERS  LICENSE",
      "fake  sd      256x256  1024, by 8  25 steps, dpmpp_2m  loading 42 %  143 MiB  1        Apache-2.0",
      "",
    ]);
  });
});

describe.each(["import", "quantize"])("atelier models %s", (tool) => {
  it("runs the trainer's tool where the user is, passes everything on, and ends with its exit code", async () => {
    const args = ["./sd15", "--out", "my model", "--new-option=1", "--force"];
    const atelier = start("models", tool, ...args, { FAKE_ROOT: fakePython('echo "error: no" >&2; exit 1') });
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toBe("error: no\n");
    expect(atelier.stdout.split("\n")).toEqual([
      `in ${realpathSync(folder)}, PYTHONPATH ${folder}/services/trainer`,
      ...["-m", "atelier_trainer", tool, ...args],
      "",
    ]);
  });

  it("says what Python needs, in both languages, when it cannot be set up", async () => {
    mkdirSync(join(folder, "scripts"));
    writeFileSync(join(folder, "scripts/python-env.sh"), "echo 'python-env: 1 GB free' >&2; exit 1");
    const atelier = start("models", tool, "a", { FAKE_ROOT: folder });
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toMatch(/^python-env: 1 GB free\nerror: the Python tools could not be set up/);
    expect(atelier.stderr).toContain("Python 3.11 or newer");
    expect(atelier.stderr).toContain("无法准备 Python 环境");
  });

  it("stops the tool when it is stopped", async () => {
    const waits = "trap 'echo told >&2; kill $!; exit 143' TERM; sleep 60 & echo waiting; wait";
    const atelier = start("models", tool, "a", { FAKE_ROOT: fakePython(waits) });
    await atelier.printed("waiting");
    atelier.signal("SIGTERM");
    expect(await atelier.exitCode).toBe(130);
    expect(atelier.stderr).toBe("told\n");
  });

  it("prints its options without any Python", async () => {
    const atelier = start("models", tool, "--help", { FAKE_ROOT: "/nowhere" });
    expect(await atelier.exitCode).toBe(0);
    expect(atelier.stdout).toMatch(/Usage: atelier models \w+ <\w+> --out <folder> \[options\]/);
    expect(atelier.stdout).toContain(`Examples · 示例:\n  atelier models ${tool}`);
  });
});

describe("atelier", () => {
  it("prints its version and help with examples", async () => {
    const version = start("--version");
    expect(await version.exitCode).toBe(0);
    expect(version.stdout).toBe("1.2.3\n");
    for (const command of ["up", "generate"]) {
      const help = start(command, "--help");
      expect(await help.exitCode).toBe(0);
      expect(help.stdout).toContain(`Examples · 示例:\n  atelier ${command}`);
    }
  });
});

// --- Vocabulary ----------------------------------------------------------------------------------------------------

/** Where nobody listens. */
let nowhere = "";
let folder = "";
let running: ChildProcess[] = [];

beforeAll(async () => {
  const server = await listenSomewhere();
  nowhere = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  server.close();
});

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "atelier-cli-"));
});

afterEach(async () => {
  for (const child of running) child.kill("SIGTERM");
  await Promise.all(
    running.map((child) => child.exitCode ?? child.signalCode ?? new Promise((gone) => child.once("exit", gone))),
  );
  running = [];
  rmSync(folder, { recursive: true });
});

/** Runs the command over stand-ins for the services, in `folder`; a last argument that is an object is environment. */
function start(...given: (string | Record<string, string>)[]) {
  const args = given.filter((arg) => typeof arg === "string");
  const { ATELIER_URL: _url, npm_lifecycle_event: _event, INIT_CWD: _cwd, ...inherited } = process.env;
  const env: Record<string, string | undefined> = {
    ...inherited,
    FAKE_LOG: join(folder, "log"),
    FAKE_DEFAULT_URL: nowhere,
    XDG_DATA_HOME: join(folder, "home"),
  };
  for (const name of ["ATELIER_DATA_DIR", "ATELIER_QUEUE", "ATELIER_OBJECTS"]) delete env[name];
  for (const more of given) if (typeof more !== "string") Object.assign(env, more);
  const main = join(import.meta.dirname, "testing/main-with-fakes.ts");
  // The second command keeps the shell from becoming the first one.
  const command = env["IN_SHELL"] ? ["sh", "-c", '"$@"; true', "sh", process.execPath] : [process.execPath];
  const [program, ...rest] = [...command, main, ...args];
  const child = spawn(program!, rest, { cwd: folder, env, stdio: ["ignore", "pipe", "pipe"] });
  running.push(child);

  const output = {
    stdout: "",
    stderr: "",
    exitCode: new Promise<number | null>((resolve) => child.once("close", resolve)),
    signal: (name: NodeJS.Signals) => child.kill(name),
    printed: (text: string) => until(`"${text}" on standard output`, () => output.stdout.includes(text)),
    said: (text: string) => until(`"${text}" on standard error`, () => output.stderr.includes(text)),
  };
  child.stdout.on("data", (chunk) => {
    output.stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    output.stderr += chunk;
  });
  return output;
}

/** A repository in `folder` whose Python says where it was started and with what, and then runs `script`. */
function fakePython(script: string): string {
  mkdirSync(join(folder, "scripts"));
  mkdirSync(join(folder, "env/bin"), { recursive: true });
  writeFileSync(join(folder, "scripts/python-env.sh"), `echo "${folder}/env"`);
  const say = 'echo "in $(pwd -P), PYTHONPATH $PYTHONPATH"; printf "%s\\n" "$@"';
  writeFileSync(join(folder, "env/bin/python"), `#!/usr/bin/env bash\n${say}\n${script}\n`, { mode: 0o755 });
  return folder;
}

async function runningUrl(): Promise<string> {
  const atelier = start("up", "--port", "0");
  await atelier.printed("Ctrl-C stops it");
  return `http://127.0.0.1:${portOf(atelier.stdout)}`;
}

const portOf = (stdout: string) => Number(/open at http:\/\/127\.0\.0\.1:(\d+)/.exec(stdout)![1]);

/** What the stand-ins wrote, oldest first. */
function log(): string[] {
  try {
    return readFileSync(join(folder, "log"), "utf8").trimEnd().split("\n");
  } catch {
    return []; // none was started
  }
}

const logged = (line: string) => until(`"${line}" in the log`, () => log().includes(line));
const withoutPid = (line: string) => line.replace(/ (?:listens )?at .*/, "");
const pidOf = (id: string) => Number(/pid (\d+)/.exec(log().find((line) => line.startsWith(`${id} started`))!)![1]);
const drawn = () => JSON.parse(log().flatMap((line) => /^gateway drew (.*)/.exec(line)?.[1] ?? [])[0]!);

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

async function until(what: string, holds: () => boolean): Promise<void> {
  for (let i = 0; !holds(); i++) {
    if (i > 1500) throw new Error(`waited 30 s for ${what}; the log says:\n${log().join("\n")}`);
    await sleep(20);
  }
}

function listenSomewhere(): Promise<Server> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => resolve(server));
  });
}
