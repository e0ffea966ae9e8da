import { createSocket } from "node:dgram";
import { type AddressInfo, isIPv4 } from "node:net";

const A = 1;
const AAAA = 28;
const HEADER_BYTES = 12;
const NAME_ERROR = 3;
const SERVER_FAILURE = 2;

/** A name server of one machine, for tests: A and AAAA records as the test sets them. Source: RFC 1035, section 4. */
export class DnsServer {
  /** By name; a name that is not here does not exist. */
  readonly records = new Map<string, readonly string[]>();
  /** Answers every question with a failure, as an overloaded server does. */
  failing = false;
  questions = 0;
  readonly #socket = createSocket("udp4");

  static async start(): Promise<DnsServer> {
    const server = new DnsServer();
    server.#socket.on("message", (query, { address, port }) =>
      server.#socket.send(server.#answer(query), port, address),
    );
    await new Promise<void>((resolve) => server.#socket.bind(0, "127.0.0.1", resolve));
    return server;
  }

  /** As `Resolver.setServers` takes it. */
  get address(): string {
    return `127.0.0.1:${(this.#socket.address() as AddressInfo).port}`;
  }

  stop(): Promise<void> {
    return new Promise((resolve) => this.#socket.close(() => resolve()));
  }

  #answer(query: Buffer): Buffer {
    this.questions += 1;
    const { name, end } = readName(query);
    const type = query.readUInt16BE(end);
    const known = this.records.get(name);
    const fitting = (known ?? []).filter((address) => (isIPv4(address) ? type === A : type === AAAA));
    const header = Buffer.alloc(HEADER_BYTES);
    query.copy(header, 0, 0, 2); // the question's number
    const code = this.failing ? SERVER_FAILURE : known === undefined ? NAME_ERROR : 0;
    header.writeUInt16BE(0x8180 | code, 2); // an answer, recursion as asked for
    header.writeUInt16BE(1, 4);
    header.writeUInt16BE(this.failing ? 0 : fitting.length, 6);
    const question = query.subarray(HEADER_BYTES, end + 4);
    return Buffer.concat([header, question, ...(this.failing ? [] : fitting.map((address) => record(type, address)))]);
  }
}

function readName(query: Buffer): { name: string; end: number } {
  const labels: string[] = [];
  let at = HEADER_BYTES;
  for (let length = query[at]!; length > 0; length = query[at]!) {
    labels.push(query.toString("latin1", at + 1, at + 1 + length));
    at += 1 + length;
  }
  return { name: labels.join("."), end: at + 1 };
}

function record(type: number, address: string): Buffer {
  const data = isIPv4(address) ? Buffer.from(address.split(".").map(Number)) : bytesOfIPv6(address);
  const head = Buffer.alloc(12);
  head.writeUInt16BE(0xc00c, 0); // the name, as in the question
  head.writeUInt16BE(type, 2);
  head.writeUInt16BE(1, 4); // the internet
  head.writeUInt32BE(0, 6); // not to be kept
  head.writeUInt16BE(data.length, 10);
  return Buffer.concat([head, data]);
}

function bytesOfIPv6(address: string): Buffer {
  const [left = "", right] = address.split("::");
  const groups = (text: string) => text.split(":").filter((group) => group !== "");
  const [front, back] = [groups(left), groups(right ?? "")];
  const middle = Array.from({ length: 8 - front.length - back.length }, () => "0");
  const data = Buffer.alloc(16);
  for (const [i, group] of [...front, ...middle, ...back].entries())
    data.writeUInt16BE(Number.parseInt(group, 16), 2 * i);
  return data;
}
