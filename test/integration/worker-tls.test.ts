import { mkdtempSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import { type SpawnedWorker, spawnWorker } from "@atelier/worker/testing/spawn-worker";
import { describe, expect, it } from "vitest";
import { type CertificateFiles, TestAuthority, writeCertificate } from "../support/certificates.ts";
import { atEnd, running, until } from "../support/ends.ts";

const BUNDLE = join(import.meta.dirname, "../../deploy/models/atelier-tiny");

describe("a worker with certificates", () => {
  it("serves a gateway with a certificate of its authority, and a name other than its address where that is told", async () => {
    const { authority, folder, address } = await workerWithTls();
    const files = writeCertificate(folder, "gateway", authority);
    const gateway = await gatewayTo(address, files, { ATELIER_WORKER_TLS_NAME: "localhost" });
    await gateway.until((views) => views.some(({ ready }) => ready));
    expect((await picture(gateway)).status).toBe(200);
  });

  it.each([
    {
      who: "without a certificate",
      filesOf: () => undefined,
    },
    {
      who: "with a certificate of another authority",
      filesOf: (folder: string, authority: TestAuthority) => ({
        ...writeCertificate(folder, "stranger", new TestAuthority("Another authority")),
        ca: writeCertificate(folder, "known", authority).ca,
      }),
    },
    {
      who: "that trusts another authority",
      filesOf: (folder: string, authority: TestAuthority) => ({
        ...writeCertificate(folder, "gateway", authority),
        ca: writeCertificate(folder, "other", new TestAuthority("Another authority")).ca,
      }),
    },
  ])("is not used by a gateway $who", async ({ filesOf }) => {
    const { authority, folder, address } = await workerWithTls();
    const gateway = await gatewayTo(address, filesOf(folder, authority));
    await sleep(1_000); // several attempts to connect
    const refused = await picture(gateway);
    expect(refused.status).toBe(503);
    expect(await refused.json()).toMatchObject({ error: { code: "NO_WORKER" } });
    expect(gateway.fleet.views().some(({ ready }) => ready)).toBe(false);
  });

  it("and its gateway take up renewed certificates of a new authority, while a request goes on", async () => {
    const { authority, folder, address, files } = await workerWithTls();
    const own = writeCertificate(folder, "gateway", authority);
    const gateway = await gatewayTo(address, own);
    await gateway.until((views) => views.some(({ ready }) => ready));

    const asked = picture(gateway, { steps: 60 });
    const next = new TestAuthority("The next authority");
    replace(files, writeCertificate(folder, "worker-2", next));
    replace(own, writeCertificate(folder, "gateway-2", next));
    expect((await asked).status).toBe(200);

    // Who comes now is seen by the new authority only.
    const late = await gatewayTo(address, own);
    await late.until((views) => views.some(({ ready }) => ready));
    const old = writeCertificate(folder, "gateway-old", authority);
    const outdated = await gatewayTo(address, { ...old, ca: own.ca });
    await until(async () => (await picture(outdated)).status === 503);
    expect((await picture(gateway)).status).toBe(200);
  });

  it("does not start with half of what it needs for that", async () => {
    const folder = scratch();
    const files = writeCertificate(folder, "worker", new TestAuthority());
    const worker = spawnWorker({
      ATELIER_MODELS: BUNDLE,
      ATELIER_WORKER_TLS_CERT: files.cert,
      ATELIER_WORKER_TLS_KEY: files.key,
    });
    await expect(worker.said("listening")).rejects.toThrow();
    expect((await worker.said("failed")).message).toContain("ATELIER_WORKER_TLS_CLIENT_CA must be set beside");
  });
});

// --- What the tests run on ------------------------------------------------------------------------------------------

function scratch(): string {
  const folder = mkdtempSync(join(tmpdir(), "atelier-worker-tls-"));
  atEnd(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** A real worker process on a simulated device. */
async function workerWithTls(): Promise<{
  authority: TestAuthority;
  folder: string;
  files: CertificateFiles;
  address: string;
}> {
  const folder = scratch();
  const authority = new TestAuthority();
  const files = writeCertificate(folder, "worker", authority);
  const worker = spawnWorker({
    ATELIER_MODELS: BUNDLE,
    ATELIER_DEVICE: "simulated",
    ATELIER_WORKER_TLS_CERT: files.cert,
    ATELIER_WORKER_TLS_KEY: files.key,
    ATELIER_WORKER_TLS_CLIENT_CA: files.ca,
  });
  atEnd(() => end(worker));
  const { address } = await worker.said("listening");
  await worker.said("ready");
  return { authority, folder, files, address };
}

async function end(worker: SpawnedWorker): Promise<void> {
  worker.process.kill("SIGKILL");
  await worker.exited;
}

function gatewayTo(
  address: string,
  files: CertificateFiles | undefined,
  env: Record<string, string> = {},
): Promise<TestGateway> {
  const tls: Record<string, string> =
    files === undefined
      ? {}
      : { ATELIER_WORKER_CA: files.ca, ATELIER_WORKER_CERT: files.cert, ATELIER_WORKER_KEY: files.key };
  return running(startGateway([address], { ATELIER_RETRY_WAIT_MS: "0", ...tls, ...env }));
}

function picture({ url }: TestGateway, body: object = {}): Promise<Response> {
  return fetch(`${url}/generate`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: "a red mug", width: 256, height: 256, steps: 4, ...body }),
  });
}

function replace(files: CertificateFiles, by: CertificateFiles): void {
  for (const name of ["ca", "cert", "key"] as const) renameSync(by[name], files[name]);
}
