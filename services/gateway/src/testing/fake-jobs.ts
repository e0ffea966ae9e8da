import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

/** Stands for services/jobs: answers as a test says, and remembers what it was asked. */
export class FakeJobs {
  readonly url: string;
  readonly requests: IncomingMessage[] = [];
  /** What the next requests are answered with; `{}` where nothing is said. */
  answer: Handler = (_request, response) =>
    void response.writeHead(200, { "content-type": "application/json" }).end("{}");
  readonly #server: Server;

  static async start(): Promise<FakeJobs> {
    const server = createServer();
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return new FakeJobs(server);
  }

  private constructor(server: Server) {
    this.#server = server;
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    server.on("request", (request, response) => {
      this.requests.push(request);
      this.answer(request, response);
    });
  }

  /** Who asked last, as the gateway said. */
  get caller(): unknown {
    const header = this.requests.at(-1)!.headers["x-atelier-caller"] as string;
    return JSON.parse(Buffer.from(header, "base64url").toString("utf8"));
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }
}
