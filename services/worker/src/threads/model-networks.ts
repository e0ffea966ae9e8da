import { invariant } from "@atelier/core";
import type { Releasable } from "../device/device.ts";

/** What a stage says of a network that it opened. */
export interface OpenedNetwork {
  /** As the device tells it, from the start; lanes that open later add theirs. */
  readonly weightsBytes: number;
  /** For the log: what somebody should know of how the model runs. */
  readonly notes: readonly string[];
}

/** One kind of network for each model that is in memory. They come and go while others run. */
export class ModelNetworks<
  Files extends { readonly model: string },
  Network extends Releasable & { readonly note?: string | undefined },
> {
  readonly #open: (files: Files) => Promise<Network>;
  readonly #networks = new Map<string, Network>();
  readonly #opening = new Map<string, Promise<unknown>>();

  constructor(open: (files: Files) => Promise<Network>) {
    this.#open = open;
  }

  /** The network of a model that is open: work of any other never gets as far as a stage. */
  get(model: string): Network {
    const network = this.#networks.get(model);
    invariant(network !== undefined, `the networks of ${model} are open`);
    return network;
  }

  /** @throws ServingError as the device's; the model is then not there. */
  async open(files: Files): Promise<OpenedNetwork> {
    const { model } = files;
    invariant(!this.#networks.has(model) && !this.#opening.has(model), `${model} is opened once`);
    const opening = this.#open(files);
    this.#opening.set(model, opening);
    try {
      const network = await opening;
      this.#networks.set(model, network);
      return { weightsBytes: network.weightsBytes, notes: network.note === undefined ? [] : [network.note] };
    } finally {
      this.#opening.delete(model);
    }
  }

  /** Releases a model's network; without effect where it is not open. No call of it runs. */
  async close(model: string): Promise<void> {
    const network = this.#networks.get(model);
    this.#networks.delete(model);
    await network?.release();
  }

  /** Releases all, those that are still being opened as well. */
  async closeAll(): Promise<void> {
    await Promise.allSettled(this.#opening.values());
    for (const model of [...this.#networks.keys()]) await this.close(model);
  }
}
