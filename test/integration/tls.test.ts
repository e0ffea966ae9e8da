import { mkdtempSync, renameSync, rmSync } from "node:fs";
import { Agent, request } from "node:https";
import { connect as connectTcp } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type TLSSocket } from "node:tls";
import { FakeWorker } from "@atelier/gateway/testing";
import { allReady, startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import { Generation, ListModelsRequestSchema, type ListModelsResponse } from "@atelier/proto";
import { serviceDefinition } from "@atelier/rpc";
import { create } from "@bufbuild/protobuf";
import { type ChannelCredentials, Client, credentials, type MethodDefinition } from "@grpc/grpc-js";
import { describe, expect, it } from "vitest";
import { type CertificateFiles, TestAuthority, writeCertificate } from "../support/certificates.ts";
import { atEnd, running, until } from "../support/ends.ts";

describe("HTTPS", () => {
  it("serves with the certificate of the files, and tells browsers to come by HTTPS only", async () => {
    const { gateway, authority } = await httpsGateway();
    const answer = await ask(gateway, authority);
    expect(answer.status).toBe(200);
    expect(answer.headers["strict-transport-security"]).toBe("max-age=15552000");
  });

  it("takes up renewed files without a restart, and keeps the connections that there are", async () => {
    const { gateway, authority, files, folder } = await httpsGateway();
    const kept = await connection(gateway, authority);
    const before = kept.getPeerCertificate().fingerprint256;
    expect(await askOn(kept)).toMatch(/^HTTP\/1\.1 200 /);

    replace(files, writeCertificate(folder, "renewed", authority));
    await until(async () => (await fingerprint(gateway, authority)) !== before);

    expect(await askOn(kept)).toMatch(/^HTTP\/1\.1 200 /);
    expect(kept.getPeerCertificate().fingerprint256).toBe(before);
  });

  it("goes on with the last certificate while the files do not fit together", async () => {
    const { gateway, authority, files, folder } = await httpsGateway();
    const before = await fingerprint(gateway, authority);
    const renewed = writeCertificate(folder, "renewed", authority);
    renameSync(renewed.cert, files.cert); // and its key is not there yet
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    expect(await fingerprint(gateway, authority)).toBe(before);
    renameSync(renewed.key, files.key);
    await until(async () => (await fingerprint(gateway, authority)) !== before);
  });

  it("is not spoken in clear", async () => {
    const { gateway } = await httpsGateway();
    const socket = connectTcp(Number(new URL(gateway.url).port), "127.0.0.1");
    socket.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    let answer = "";
    socket.setEncoding("latin1").on("data", (text) => {
      answer += text;
    });
    socket.on("error", () => {}); // it may be reset
    await new Promise((resolve) => socket.on("close", resolve));
    expect(answer).not.toContain("HTTP");
  });

  it("is what the gRPC API speaks as well", async () => {
    const { gateway, authority } = await httpsGateway({ ATELIER_GRPC_LISTEN: "127.0.0.1:0" });
    const known = credentials.createSsl(Buffer.from(authority.cert));
    expect(await modelsOf(gateway, known)).toEqual(["atelier-tiny"]);
    await expect(modelsOf(gateway, credentials.createInsecure())).rejects.toThrow(/UNAVAILABLE/);
    const stranger = credentials.createSsl(Buffer.from(new TestAuthority("A stranger").cert));
    await expect(modelsOf(gateway, stranger)).rejects.toThrow(/UNAVAILABLE/);
  });

  it("does not start with a key that is another certificate's, or with files that are not there", async () => {
    const folder = scratch();
    const authority = new TestAuthority();
    const one = writeCertificate(folder, "one", authority);
    const other = writeCertificate(folder, "other", authority);
    const wrongKey = { ATELIER_TLS_CERT: one.cert, ATELIER_TLS_KEY: other.key };
    await expect(startGateway([], wrongKey)).rejects.toThrow(
      /ATELIER_TLS_CERT=.*ATELIER_TLS_KEY=.* do not fit together/,
    );
    const nowhere = { ATELIER_TLS_CERT: join(folder, "no.pem"), ATELIER_TLS_KEY: one.key };
    await expect(startGateway([], nowhere)).rejects.toThrow(/ATELIER_TLS_CERT=.*no\.pem cannot be read: ENOENT/);
  });
});

// --- What the tests run on ------------------------------------------------------------------------------------------

function scratch(): string {
  const folder = mkdtempSync(join(tmpdir(), "atelier-tls-"));
  atEnd(() => rmSync(folder, { recursive: true }));
  return folder;
}

async function httpsGateway(more: Record<string, string> = {}): Promise<{
  gateway: TestGateway;
  authority: TestAuthority;
  files: CertificateFiles;
  folder: string;
}> {
  const folder = scratch();
  const authority = new TestAuthority();
  const files = writeCertificate(folder, "gateway", authority);
  const worker = await running(FakeWorker.start());
  const env = { ATELIER_TLS_CERT: files.cert, ATELIER_TLS_KEY: files.key, ...more };
  const gateway = await running(startGateway([worker.address], env));
  await gateway.until(allReady);
  return { gateway, authority, files, folder };
}

async function modelsOf({ grpcAddress }: TestGateway, security: ChannelCredentials): Promise<string[]> {
  const { path, requestSerialize, responseDeserialize } = serviceDefinition(Generation)[
    "listModels"
  ] as MethodDefinition<object, ListModelsResponse>;
  const client = new Client(grpcAddress!, security);
  atEnd(() => client.close());
  const message = create(ListModelsRequestSchema);
  const answer = await new Promise<ListModelsResponse>((resolve, reject) => {
    client.makeUnaryRequest(path, requestSerialize, responseDeserialize, message, (error, value) =>
      value === undefined ? reject(error) : resolve(value),
    );
  });
  return answer.models.map(({ model }) => model?.id ?? "");
}

/** As who renews certificates does it: each file appears whole. */
function replace(files: CertificateFiles, by: CertificateFiles): void {
  renameSync(by.cert, files.cert);
  renameSync(by.key, files.key);
}

function ask(
  { url }: TestGateway,
  authority: TestAuthority,
): Promise<{ status: number; headers: Record<string, string | string[] | undefined> }> {
  return new Promise((resolve, reject) => {
    request(`${url}/healthz`, { agent: new Agent({ ca: authority.cert }) }, (response) => {
      response.resume();
      resolve({ status: response.statusCode!, headers: response.headers });
    })
      .on("error", reject)
      .end();
  });
}

async function connection({ url }: TestGateway, authority: TestAuthority): Promise<TLSSocket> {
  const socket = connect({ port: Number(new URL(url).port), host: "127.0.0.1", ca: authority.cert });
  atEnd(() => socket.destroy());
  await new Promise<void>((resolve, reject) => socket.once("secureConnect", resolve).once("error", reject));
  return socket;
}

async function fingerprint(gateway: TestGateway, authority: TestAuthority): Promise<string> {
  const socket = await connection(gateway, authority);
  const { fingerprint256 } = socket.getPeerCertificate();
  socket.destroy();
  return fingerprint256;
}

function askOn(socket: TLSSocket): Promise<string> {
  const answer = new Promise<string>((resolve) => socket.once("data", (data) => resolve(String(data))));
  socket.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
  return answer;
}
