import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { S3Settings } from "@atelier/object-store";
import { type Program, s3Server } from "../../scripts/services/programs.ts";
import { ChildProgram } from "./child-program.ts";
import { freePorts } from "./free-ports.ts";

/** Of a server on loopback that lives as long as a test. */
export const S3_CREDENTIALS = { AWS_ACCESS_KEY_ID: "atelier-test", AWS_SECRET_ACCESS_KEY: "no-secret-at-all" };

/** Go builds the server the first time, which takes two processors a minute, and more where Go itself is brought. */
export const S3_START_MAX_MS = 600_000;

/** An S3 server with the buckets named, in files, on a free port of loopback; ends with this process at the latest. */
export async function startS3(...buckets: readonly string[]): Promise<S3Process> {
  const [port] = await freePorts(1);
  const folder = await mkdtemp(join(tmpdir(), "atelier-s3-"));
  for (const bucket of buckets) await mkdir(join(folder, "buckets", bucket), { recursive: true });
  for (const name of ["about", "keys"]) await mkdir(join(folder, name));
  const s3 = new S3Process(await s3Server(), { port: port!, folder });
  await s3.start();
  return s3;
}

export class S3Process {
  readonly port: number;
  readonly #folder: string;
  readonly #program: Program;
  #child: ChildProgram | undefined;

  constructor(program: Program, at: { readonly port: number; readonly folder: string }) {
    this.port = at.port;
    this.#folder = at.folder;
    this.#program = program;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  get settings(): S3Settings {
    return { endpoint: this.endpoint, region: "us-east-1", pathStyle: true };
  }

  /** Starts it (again), with what it had, and resolves when it takes connections. */
  async start(): Promise<void> {
    const { AWS_ACCESS_KEY_ID: access, AWS_SECRET_ACCESS_KEY: secret } = S3_CREDENTIALS;
    const program = {
      ...this.#program,
      env: { ...this.#program.env, ROOT_ACCESS_KEY: access, ROOT_SECRET_KEY: secret },
    };
    const where = [
      "--port",
      `127.0.0.1:${this.port}`,
      "--quiet",
      "--keep-alive",
      "--iam-dir",
      join(this.#folder, "keys"),
    ];
    // Beside the objects: not every file system has attributes for what is known about them.
    const kept = ["posix", "--sidecar", join(this.#folder, "about"), join(this.#folder, "buckets")];
    this.#child = new ChildProgram(program, [...where, ...kept], { cwd: tmpdir() });
    await this.#child.until(() => this.#answers(), "versitygw answers");
  }

  async kill(): Promise<void> {
    await this.#child?.kill();
    this.#child = undefined;
  }

  /** Stands still: connections stay open and no answer comes. */
  pause(): void {
    this.#child?.pause();
  }

  resume(): void {
    this.#child?.resume();
  }

  /** Kills it, and removes what it had. */
  async stop(): Promise<void> {
    await this.kill();
    await rm(this.#folder, { recursive: true, force: true });
  }

  #answers(): Promise<boolean> {
    return new Promise((resolve) => {
      const socket = connect(this.port, "127.0.0.1");
      const end = (answers: boolean) => {
        socket.destroy();
        resolve(answers);
      };
      socket.once("connect", () => end(true));
      socket.once("error", () => end(false));
    });
  }
}
