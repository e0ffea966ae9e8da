import type { ItemDone, JobEvent } from "@atelier/proto";

/** What is known of a picture beside what it was to be. */
export interface MadePicture {
  /** Lower-case hexadecimal. */
  readonly sha256: string;
  readonly bytes: number;
  readonly deviceMs: number;
  readonly attempts: number;
  readonly workerId: string;
  readonly modelDigest: string;
  /** No model ran. */
  readonly simulated: boolean;
}

const SHA256_BYTES = 32;

/**
 * The pictures of one job, folded from its events: 56 bytes for each of its items, since a job may have a million of
 * them. The first outcome of an item counts, as in the ledger.
 */
export class MadePictures {
  /** Newest event that is in it. */
  sequence = 0;
  readonly size: number;
  readonly #sha256: Buffer;
  readonly #bytes: Float64Array;
  readonly #deviceMs: Float64Array;
  readonly #attempts: Uint16Array;
  /** 0: not made. */
  readonly #makers: Uint32Array;
  /** By number, from 1: workers with what they ran. */
  readonly #makerList: Pick<MadePicture, "workerId" | "modelDigest" | "simulated">[] = [];
  readonly #makerNumbers = new Map<string, number>();

  constructor(size: number) {
    this.size = size;
    this.#sha256 = Buffer.alloc(size * SHA256_BYTES);
    this.#bytes = new Float64Array(size);
    this.#deviceMs = new Float64Array(size);
    this.#attempts = new Uint16Array(size);
    this.#makers = new Uint32Array(size);
  }

  /** Events come in their order. */
  apply({ event }: JobEvent): void {
    if (event.case !== "outcome" || event.value.result.case !== "done") return;
    const { itemIndex: index, attempts, result } = event.value;
    if (index >= this.size || this.has(index)) return;
    this.#keep(index, attempts, result.value);
  }

  has(index: number): boolean {
    return this.#makers[index] !== undefined && this.#makers[index] !== 0;
  }

  get(index: number): MadePicture | undefined {
    if (!this.has(index)) return undefined;
    return {
      sha256: this.#sha256.toString("hex", index * SHA256_BYTES, (index + 1) * SHA256_BYTES),
      bytes: this.#bytes[index]!,
      deviceMs: this.#deviceMs[index]!,
      attempts: this.#attempts[index]!,
      ...this.#makerList[this.#makers[index]! - 1]!,
    };
  }

  #keep(index: number, attempts: number, { sha256, bytes, receipt }: ItemDone): void {
    this.#sha256.write(sha256, index * SHA256_BYTES, SHA256_BYTES, "hex");
    this.#bytes[index] = Number(bytes);
    this.#deviceMs[index] = receipt?.deviceMs ?? 0;
    this.#attempts[index] = Math.min(attempts, 65_535);
    const { workerId = "", modelDigest = "", simulated = false } = receipt ?? {};
    const key = JSON.stringify([workerId, modelDigest, simulated]);
    let number = this.#makerNumbers.get(key);
    if (number === undefined) {
      number = this.#makerList.push({ workerId, modelDigest, simulated });
      this.#makerNumbers.set(key, number);
    }
    this.#makers[index] = number;
  }
}
