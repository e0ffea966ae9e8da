/** The answer of POST /generate, as far as tests look at it. */
export interface GenerateAnswer {
  readonly image: string;
  readonly images?: readonly string[];
  readonly receipt: {
    readonly attempts: number;
    readonly worker_id: string;
    readonly worker_ids?: readonly string[];
    readonly resumed_at_steps?: readonly number[];
    readonly seed: number;
    readonly num_images: number;
    readonly simulated: boolean;
  };
}

type Data = Readonly<Record<string, unknown>>;

/** A generation that is followed by its events. */
export interface Followed {
  /** The data of all events of this name so far. */
  events(name: string): readonly Data[];
  /** Resolves once so many steps are done. */
  stepsDone(steps: number): Promise<void>;
  /** Resolves once it is in this stage. */
  stage(name: string): Promise<void>;
  /** Rejects with "STATUS CODE: message", or what broke the connection. */
  readonly completed: Promise<GenerateAnswer>;
}

/** Not from a cache, nor for one. */
const HEADERS = { "content-type": "application/json", "cache-control": "no-cache, no-store" };

/** Rejects with "STATUS CODE: message" of a refusal. */
export async function ask(url: string, body: object): Promise<GenerateAnswer> {
  const response = await fetch(`${url}/generate`, { method: "POST", headers: HEADERS, body: JSON.stringify(body) });
  const answer = (await response.json()) as GenerateAnswer & ErrorBody;
  if (!response.ok) throw new Error(`${response.status} ${answer.error.code}: ${answer.error.message}`);
  return answer;
}

interface ErrorBody {
  readonly error: { readonly code: string; readonly message: string };
}

export function follow(url: string, body: object): Followed {
  const came: { name: string; data: Data }[] = [];
  const waiting = new Set<() => void>();
  const completed = read();
  completed.catch(() => {}); // a test may look at its events only
  const until = async (condition: (name: string, data: Data) => boolean) => {
    while (!came.some(({ name, data }) => condition(name, data))) {
      const more = Promise.withResolvers<void>();
      waiting.add(more.resolve);
      await Promise.race([
        more.promise,
        completed.then(() => {
          throw new Error("it was completed before");
        }),
      ]);
    }
  };

  async function read(): Promise<GenerateAnswer> {
    const headers = { ...HEADERS, accept: "text/event-stream" };
    const response = await fetch(`${url}/generate`, { method: "POST", headers, body: JSON.stringify(body) });
    if (!response.ok) {
      const { error } = (await response.json()) as ErrorBody;
      throw new Error(`${response.status} ${error.code}: ${error.message}`);
    }
    let text = "";
    for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) {
      text += chunk;
      const blocks = text.split("\n\n");
      text = blocks.pop()!;
      for (const block of blocks) {
        const name = /^event: (.*)$/m.exec(block)?.[1];
        const data = /^data: (.*)$/m.exec(block)?.[1];
        if (name !== undefined && data !== undefined) came.push({ name, data: JSON.parse(data) as Data });
      }
      for (const heard of waiting) heard();
      waiting.clear();
    }
    const last = came.at(-1);
    if (last?.name === "completed") return last.data as unknown as GenerateAnswer;
    const { error } = (last?.data ?? {}) as unknown as Partial<ErrorBody>;
    throw new Error(error === undefined ? "the stream ended early" : `200 ${error.code}: ${error.message}`);
  }

  return {
    events: (name) => came.filter((event) => event.name === name).map(({ data }) => data),
    stepsDone: (steps) => until((name, data) => name === "progress" && (data["steps_done"] as number) >= steps),
    stage: (stage) => until((name, data) => name === "progress" && data["stage"] === stage),
    completed,
  };
}
