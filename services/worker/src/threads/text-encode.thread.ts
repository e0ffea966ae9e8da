import { Deadline, systemClock } from "@atelier/core";
import {
  type Device,
  type DeviceSpec,
  type NetworkFiles,
  openDevice,
  type Releasable,
  type TextEncoderFiles,
} from "../device/device.ts";
import { openPromptReader } from "../prompt-reader.ts";
import {
  type TextEncoded,
  type TextEncodeLimits,
  TextEncodeStage,
  type TextModel,
  type TextTower,
} from "../stages/text-encode.ts";
import { TextVectorStage } from "../stages/text-vectors.ts";
import { ModelNetworks } from "./model-networks.ts";
import { type HostedStage, hostStage, type Reply } from "./stage-host.ts";

export interface TextEncodeData {
  readonly device: DeviceSpec;
  readonly limits: TextEncodeLimits;
}

export interface TextEncodeFiles extends NetworkFiles {
  readonly textEncoders: readonly (TextEncoderFiles & { readonly tokenizerDir: string })[];
  /** The text side of the bundle's CLIP pair, where it has one. */
  readonly clipText: (TextEncoderFiles & { readonly tokenizerDir: string }) | undefined;
  readonly textDigest: string;
  readonly zeroEmptyNegative: boolean;
}

export interface TextEncodeWork {
  readonly model: string;
  readonly prompt: string;
  readonly negativePrompt: string | undefined;
  readonly deadlineAtMs: number;
}

export interface TextVectorsWork {
  readonly model: string;
  readonly texts: readonly string[];
  readonly deadlineAtMs: number;
}

export interface TextEncodeResult extends TextEncoded {
  /** When the stage took it up, by the system clock. */
  readonly startedAtMs: number;
}

await hostStage(openTextEncode);

function openTextEncode(
  { device, limits }: TextEncodeData,
  reply: Reply<TextEncodeResult | readonly Float32Array[], never>,
): HostedStage<TextEncodeWork | TextVectorsWork, never, TextEncodeFiles> {
  const opener = openDevice(device);
  const models = new ModelNetworks((files: TextEncodeFiles) => openTextModel(opener, files));
  const stage = new TextEncodeStage(models, limits);
  const vectors = new TextVectorStage(models, limits);

  return {
    openModel: (files) => models.open(files),
    closeModel: (model) => models.close(model),
    enqueue(id, { deadlineAtMs, ...work }) {
      const deadline = new Deadline(systemClock, deadlineAtMs);
      if ("texts" in work) vectors.enqueue({ ...work, id, deadline });
      else stage.enqueue({ ...work, id, deadline });
    },
    cancel(id) {
      stage.cancel(id);
      vectors.cancel(id);
    },
    command: () => {},
    get busy() {
      return stage.busy || vectors.busy;
    },
    async step() {
      const startedAtMs = systemClock.nowMs();
      for (const outcome of await stage.step()) {
        if (outcome.error !== undefined) reply.failed(outcome.job.id, outcome.error);
        else reply.done(outcome.job.id, { ...outcome.encoded, startedAtMs });
      }
      const outcome = await vectors.step(); // one at a time: pictures wait for the stage above
      if (outcome?.error !== undefined) reply.failed(outcome.id, outcome.error);
      else if (outcome !== undefined) reply.done(outcome.id, outcome.vectors);
    },
    release: () => models.closeAll(),
  };
}

async function openTextModel(device: Device, files: TextEncodeFiles): Promise<TextModel & Releasable> {
  const { textEncoders, clipText, textDigest: digest, zeroEmptyNegative } = files;
  const opened: (TextTower & { readonly encoder: Releasable })[] = [];
  const release = async () => {
    for (const { encoder } of opened) await encoder.release();
  };
  try {
    for (const { tokenizerDir, ...encoder } of [...textEncoders, ...(clipText ? [clipText] : [])]) {
      const reader = await openPromptReader(tokenizerDir);
      opened.push({ reader, encoder: await device.openTextEncoder(encoder) });
    }
  } catch (error) {
    await release();
    throw error;
  }
  return {
    towers: opened.slice(0, textEncoders.length),
    clipTower: opened[textEncoders.length],
    digest,
    zeroEmptyNegative,
    get weightsBytes() {
      return opened.reduce((sum, { encoder }) => sum + encoder.weightsBytes, 0);
    },
    release,
  };
}
