import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { ManualClock, type ServingError, systemClock } from "@atelier/core";
import { openObjectStore } from "@atelier/object-store";
import { ListMultipartUploadsCommand, S3Client } from "@aws-sdk/client-s3";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { objectStoreContract } from "../../packages/object-store/src/object-store.contract.ts";
import { freePorts } from "../support/free-ports.ts";
import { S3_CREDENTIALS, S3_START_MAX_MS, type S3Process, startS3 } from "../support/s3.ts";

const MEBIBYTE = 1024 * 1024;
const BUCKET = "pictures";
const CONTRACT_BUCKET = "contract";

let s3: S3Process;

beforeAll(async () => {
  s3 = await startS3(BUCKET, CONTRACT_BUCKET);
}, S3_START_MAX_MS);
afterAll(() => s3.stop());

beforeEach(() => {
  for (const [name, value] of Object.entries(S3_CREDENTIALS)) vi.stubEnv(name, value);
});
afterEach(() => vi.unstubAllEnvs());

objectStoreContract("A bucket under a prefix", async () => {
  for (const [name, value] of Object.entries(S3_CREDENTIALS)) vi.stubEnv(name, value);
  const store = await openObjectStore(`s3://${CONTRACT_BUCKET}/of/tests`, { clock: systemClock }, s3.settings);
  return { store, close: () => store.close() };
});

describe("a link", () => {
  it("gives the object to whoever holds it, under the file's name and its own media type", async () => {
    const store = await open();
    await store.put("links/1.png", Buffer.from("picture"), { mediaType: "image/png" });
    const link = await store.link("links/1.png", { expiresMs: 60_000, downloadName: 'Großer "Hund"/犬.png' });
    const answer = await fetch(link!);
    expect([answer.status, await answer.text()]).toEqual([200, "picture"]);
    expect(answer.headers.get("content-type")).toBe("image/png");
    // RFC 8187 of the name, what no file may be called replaced.
    const encoded = "Gro%C3%9Fer%20_Hund__%E7%8A%AC.png";
    expect(answer.headers.get("content-disposition")).toBe(
      `inline; filename="Gro_er _Hund___.png"; filename*=UTF-8''${encoded}`,
    );
  });

  it("holds until it expires, and for its own object alone", async () => {
    const clock = new ManualClock(Date.now() - 120_000);
    const store = await openObjectStore(`s3://${BUCKET}/links`, { clock }, s3.settings);
    await store.put("2.png", Buffer.from("picture"));
    await store.put("3.png", Buffer.from("another's"));
    const expired = await store.link("2.png", { expiresMs: 60_000 });
    expect((await fetch(expired!)).status).toBe(403);
    const holds = await store.link("2.png", { expiresMs: 300_000 });
    expect((await fetch(holds!)).status).toBe(200);
    expect((await fetch(holds!.replace("2.png", "3.png"))).status).toBe(403);
    expect((await fetch(holds!.split("?")[0]!)).status).toBe(403);
  });

  it("shows the key's id and no secret", async () => {
    const link = await (await open()).link("links/1.png", { expiresMs: 60_000 });
    expect(link).not.toContain(S3_CREDENTIALS.AWS_SECRET_ACCESS_KEY);
  });
});

describe("a write in parts", () => {
  it("keeps every byte in its place, of a stream and of one large body", async () => {
    const store = await open();
    const body = Buffer.alloc(20 * MEBIBYTE + 3);
    for (let at = 0; at + 4 <= body.length; at += 4) body.writeUInt32LE(at, at);
    await store.put("parts/body", body);
    await store.put("parts/stream", cut(body, 1_000_003));
    for (const key of ["parts/body", "parts/stream"]) {
      const read: Uint8Array[] = [];
      for await (const part of (await store.get(key))!.body) read.push(part);
      expect(Buffer.concat(read).equals(body), key).toBe(true);
    }
  });

  it("leaves no part behind where its stream breaks off or is taken back", async () => {
    const store = await open();
    let seen = 0;
    const broken = store.put(
      "broken/1",
      breaking(20, async () => {
        seen = (await uploads()).length;
      }),
    );
    await expect(broken).rejects.toThrow("the sheet broke off");
    expect(seen).toBe(1);
    const controller = new AbortController();
    const taken = store.put(
      "broken/2",
      breaking(20, async () => controller.abort(new Error("taken back"))),
      { signal: controller.signal },
    );
    await expect(taken).rejects.toThrow(/taken back|broke off/);
    expect(await uploads()).toEqual([]);
    expect(await store.head("broken/1")).toBeUndefined();
  });

  it("that the server dies under fails as STORAGE_UNAVAILABLE", async () => {
    const own = await startS3(BUCKET);
    try {
      const store = await openObjectStore(`s3://${BUCKET}`, { clock: systemClock }, own.settings);
      const writing = store.put(
        "dies",
        breaking(200, () => own.kill(), 20),
      );
      await expect(writing).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE" });
    } finally {
      await own.stop();
    }
  });
});

describe("a bucket that cannot be used", () => {
  it("is not opened where nobody listens, and the message says where it was looked for", async () => {
    const [port] = await freePorts(1);
    const error = await refusal(`s3://${BUCKET}`, { endpoint: `http://127.0.0.1:${port}` });
    expect(error.detail).toBe(
      `the bucket ${BUCKET} at http://127.0.0.1:${port} cannot be reached: ECONNREFUSED (opening)`,
    );
  });

  it("is not opened where there is none of its name", async () => {
    expect((await refusal("s3://nowhere")).detail).toMatch(/^the bucket nowhere at \S+ does not exist: NoSuchBucket/);
  });

  it("is not opened with credentials that the server does not know, nor with a wrong secret, and shows neither", async () => {
    vi.stubEnv("AWS_ACCESS_KEY_ID", "stranger-key");
    const unknown = await refusal(`s3://${BUCKET}`);
    expect(unknown.detail).toMatch(/refuses these credentials: InvalidAccessKeyId, 403/);
    vi.stubEnv("AWS_ACCESS_KEY_ID", S3_CREDENTIALS.AWS_ACCESS_KEY_ID);
    vi.stubEnv("AWS_SECRET_ACCESS_KEY", "wrong-secret");
    const wrong = await refusal(`s3://${BUCKET}`);
    expect(wrong.detail).toMatch(/refuses these credentials: SignatureDoesNotMatch, 403/);
    for (const error of [unknown, wrong]) {
      expect(`${error.stack} ${JSON.stringify(error)} ${error.cause}`).not.toMatch(/stranger-key|wrong-secret/);
    }
  });

  it("is not opened without credentials, and the message says so", async () => {
    for (const name of Object.keys(S3_CREDENTIALS)) vi.stubEnv(name, undefined);
    vi.stubEnv("AWS_EC2_METADATA_DISABLED", "true");
    for (const name of ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"]) vi.stubEnv(name, "/dev/null");
    expect((await refusal(`s3://${BUCKET}`)).detail).toMatch(/no AWS credentials are found/);
  });

  it("is not opened by an endpoint that has a password in it, which is not shown", async () => {
    const opening = openObjectStore(
      `s3://${BUCKET}`,
      { clock: systemClock },
      { ...s3.settings, endpoint: "http://me:hidden@127.0.0.1:1" },
    );
    await expect(opening).rejects.toThrow(RangeError);
    await expect(opening).rejects.not.toThrow(/hidden/);
  });

  it("fails every call while its server is away, and works again when it is back", async () => {
    const own = await startS3(BUCKET);
    try {
      const store = await openObjectStore(`s3://${BUCKET}`, { clock: systemClock }, own.settings);
      await store.put("kept", Buffer.from("x"));
      await own.kill();
      for (const call of calls(store)) await expect(call()).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE" });
      await own.start();
      await store.check();
      expect(await text((await store.get("kept"))!.body)).toBe("x");
    } finally {
      await own.stop();
    }
  }, 60_000);

  it("fails every call within its time where its server stands still", async () => {
    const own = await startS3(BUCKET);
    try {
      const settings = { ...own.settings, timeoutMs: 900 };
      const store = await openObjectStore(`s3://${BUCKET}`, { clock: systemClock }, settings);
      await store.put("large", Buffer.alloc(30 * MEBIBYTE));
      const { body } = (await store.get("large"))!;
      own.pause();
      const late = { code: "STORAGE_UNAVAILABLE", message: /at http:\S+ (did not answer within|does not answer)/ };
      await Promise.all(calls(store).map((call) => expect(call()).rejects.toMatchObject(late)));
      await expect(text(body)).rejects.toMatchObject(late);
      own.resume();
      await store.check();
    } finally {
      await own.stop();
    }
  }, 60_000);
});

describe("a server that answers", () => {
  const xml = (code: string) => `<?xml version="1.0"?><Error><Code>${code}</Code><Message>hm</Message></Error>`;

  it.each([
    ["that it is busy", 503, xml("SlowDown"), /answers an error: SlowDown, 503/, 3],
    ["that it is full", 507, xml("XMinioStorageFull"), /is full: XMinioStorageFull, 507/, 3],
    ["that a right is missing", 403, xml("AccessDenied"), /refuses these credentials: AccessDenied, 403/, 1],
    ["that the bucket is elsewhere", 301, xml("PermanentRedirect"), /answers an error: PermanentRedirect, 301/, 1],
    ["as a web page does", 200, "<html><body>welcome<br></body>", /answers/, 1],
    ["nonsense", 500, "{", /answers an error/, 3],
  ])("%s is told so, after three tries at most", async (_, status, body, message, triesMax) => {
    const server = await answering((response) => response.writeHead(status).end(body));
    const error = await refusal(`s3://${BUCKET}`, { endpoint: server.url });
    expect(error.detail).toMatch(message);
    expect(server.asked()).toBeLessThanOrEqual(triesMax);
    server.stop();
  });

  it("once that it is busy is asked again", async () => {
    const listing = '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>';
    const server = await answering((response, count) =>
      count === 1 ? response.writeHead(503).end(xml("SlowDown")) : response.writeHead(200).end(listing),
    );
    await openObjectStore(`s3://${BUCKET}`, { clock: systemClock }, { ...s3.settings, endpoint: server.url });
    expect(server.asked()).toBe(2);
    server.stop();
  });

  it("with half an object never has it taken for a whole one", async () => {
    const listing = '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>';
    const server = await answering((response, count) => {
      if (count === 1) return response.writeHead(200).end(listing);
      response.writeHead(200, { "content-length": 100 }).write("half");
      setTimeout(() => response.destroy(), 50);
    });
    const settings = { ...s3.settings, endpoint: server.url };
    const store = await openObjectStore(`s3://${BUCKET}`, { clock: systemClock }, settings);
    const { body } = (await store.get("half"))!;
    await expect(text(body)).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE", message: /cannot be reached/ });
    server.stop();
  });
});

/** What speaks HTTP and answers as a test says. */
async function answering(answer: (response: ServerResponse, count: number) => unknown) {
  let count = 0;
  const server = createServer((request, response) => {
    request.resume();
    answer(response, ++count);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked: () => count,
    stop: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}

function open() {
  return openObjectStore(`s3://${BUCKET}`, { clock: systemClock }, s3.settings);
}

async function refusal(address: string, settings: { endpoint?: string } = {}): Promise<ServingError> {
  const error = await openObjectStore(address, { clock: systemClock }, { ...s3.settings, ...settings }).catch(
    (thrown: unknown) => thrown,
  );
  expect(error).toMatchObject({ code: "STORAGE_UNAVAILABLE" });
  return error as ServingError;
}

function calls(store: Awaited<ReturnType<typeof open>>): (() => Promise<unknown>)[] {
  return [
    () => store.put("a", Buffer.from("a")),
    () => store.get("kept"),
    () => store.head("kept"),
    () => store.remove("a"),
    () => store.list("")[Symbol.asyncIterator]().next(),
    () => store.removeAll("b/"),
    () => store.check(),
  ];
}

async function uploads(): Promise<(string | undefined)[]> {
  const client = new S3Client({ endpoint: s3.endpoint, region: "us-east-1", forcePathStyle: true });
  const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket: BUCKET }));
  client.destroy();
  return Uploads.map(({ Key }) => Key);
}

async function* cut(body: Buffer, bytes: number): AsyncIterable<Uint8Array> {
  for (let from = 0; from < body.length; from += bytes) yield body.subarray(from, from + bytes);
}

/** A stream of so many MiB that ends in an error; something happens when `after` of them are taken. */
async function* breaking(count: number, happens: () => Promise<void>, after = count - 1): AsyncIterable<Uint8Array> {
  for (let i = 0; i < count; i++) {
    if (i === after) await happens();
    yield Buffer.alloc(MEBIBYTE);
  }
  throw new Error("the sheet broke off");
}
