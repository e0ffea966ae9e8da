import { type ChildProcess, fork } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SMALL_HEAP } from "@atelier/lifecycle";
import { freePorts } from "../../support/free-ports.ts";
import { type NatsProcess, startNats } from "../../support/nats.ts";
import { end, whileRunning } from "./child.ts";
import { GatewayProcess } from "./gateway-process.ts";

const jobsEntry = join(import.meta.dirname, "../../../services/jobs/src/main.ts");
const START_MAX_MS = 60_000;
const LOOK_MS = 100;

/** Of a job as the API shows it, what benches read. */
export interface JobSeen {
  readonly id: string;
  readonly status: string;
  readonly counts: Readonly<Record<string, number>>;
  readonly spent: { readonly device_seconds: number };
  readonly started_at: string | null;
  readonly ended_at: string | null;
}

/** Where the queue and the objects of one run are. */
export interface JobsPlace {
  readonly nats: NatsProcess;
  /** What workers and the jobs service have in common. */
  readonly env: Readonly<Record<string, string>>;
  /** Where the objects' files are. */
  readonly folder: string;
  stop(): Promise<void>;
}

/** A NATS server that keeps its streams in files, and a folder for objects; `folder`: in which. */
export async function openPlace({ within = tmpdir() } = {}): Promise<JobsPlace> {
  const folder = await mkdtemp(join(within, "atelier-bench-jobs-"));
  const nats = await startNats();
  return {
    nats,
    folder,
    env: { ATELIER_QUEUE: nats.url, ATELIER_OBJECTS: `file:${folder}` },
    stop: async () => {
      await nats.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** A gateway and the jobs service behind it, each a process of its own. */
export class JobsSystem {
  readonly gateway: GatewayProcess;
  readonly #jobs: ChildProcess;

  private constructor(gateway: GatewayProcess, jobs: ChildProcess) {
    this.gateway = gateway;
    this.#jobs = jobs;
  }

  /** As `npm start` starts them. */
  static async start(place: JobsPlace, workers: readonly string[]): Promise<JobsSystem> {
    const [port] = await freePorts(1);
    const gateway = await GatewayProcess.start({
      workers,
      env: { ATELIER_JOBS: `http://127.0.0.1:${port}`, ATELIER_IN_FLIGHT_MAX: "4096" },
    });
    const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ATELIER_")));
    const jobs = fork(jobsEntry, {
      env: {
        ...inherited,
        ...place.env,
        ATELIER_JOBS_LISTEN: `127.0.0.1:${port}`,
        ATELIER_GATEWAY: gateway.url,
        ATELIER_LOG_LEVEL: "warn",
      },
      execArgv: [...SMALL_HEAP],
      stdio: ["ignore", 2, 2, "ipc"],
    });
    const ready = new Promise<void>((resolve) => {
      jobs.on("message", (message: { type: string }) => {
        if (message.type === "ready") resolve();
      });
    });
    await whileRunning(jobs, ready, { name: "the jobs service", timeoutMs: START_MAX_MS });
    return new JobsSystem(gateway, jobs);
  }

  get jobsPid(): number {
    return this.#jobs.pid!;
  }

  /** Sends a sheet of JSON lines; resolves when the job was accepted. */
  async submit(lines: string, options: Readonly<Record<string, string>> = {}): Promise<JobSeen> {
    const answer = await fetch(`${this.gateway.url}/v1/jobs?${new URLSearchParams(options)}`, {
      method: "POST",
      headers: { "content-type": "application/jsonl" },
      body: lines,
    });
    return read(answer);
  }

  async job(id: string): Promise<JobSeen> {
    return read(await fetch(`${this.gateway.url}/v1/jobs/${id}`));
  }

  async cancel(id: string): Promise<void> {
    await read(await fetch(`${this.gateway.url}/v1/jobs/${id}/cancel`, { method: "POST" }));
  }

  /** The job once `holds` of it; told of it at each look. */
  async until(
    id: string,
    holds: (job: JobSeen) => boolean,
    onLook: (job: JobSeen) => void = () => {},
  ): Promise<JobSeen> {
    for (;;) {
      const job = await this.job(id);
      onLook(job);
      if (holds(job)) return job;
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
  }

  async stop(): Promise<void> {
    await end(this.#jobs);
    await this.gateway.stop();
  }
}

async function read(answer: Response): Promise<JobSeen> {
  if (!answer.ok) throw new Error(`${answer.url} answered ${answer.status}: ${await answer.text()}`);
  return (await answer.json()) as JobSeen;
}
