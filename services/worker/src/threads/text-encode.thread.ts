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
import { ModelNetworks } from "./model-networks.ts";
import { type HostedStage, hostStage, type Reply } from "./stage-host.ts";

export interface TextEncodeData {
  readonly device: DeviceSpec;
  readonly limits: TextEncodeLimits;
}

export interface TextEncodeFiles extends NetworkFiles {
  readonly textEncoders: readonly (TextEncoderFiles & { readonly tokenizerDir: string })[];
  readonly textDigest: string;
  readonly zeroEmptyNegative: boolean;
}

export interface TextEncodeWork {
  readonly model: string;
  readonly prompt: string;
  readonly negativePrompt: string | undefined;
  readonly deadlineAtMs: number;
}

export interface TextEncodeResult extends TextEncoded {
  /** When the stage took it up, by the system clock. */
  readonly startedAtMs: number;
}

await hostStage(openTextEncode);

function openTextEncode(
  { device, limits }: TextEncodeData,
  reply: Reply<TextEncodeResult, never>,
): HostedStage<TextEncodeWork, never, TextEncodeFiles> {
  const opener = openDevice(device);
  const models = new ModelNetworks((files: TextEncodeFiles) => openTextModel(opener, files));
  const stage = new TextEncodeStage(models, limits);

  return {
    openModel: (files) => models.open(files),
    closeModel: (model) => models.close(model),
    enqueue: (id, { deadlineAtMs, ...work }) =>
      stage.enqueue({ ...work, id, deadline: new Deadline(systemClock, deadlineAtMs) }),
    cancel: (id) => stage.cancel(id),
    command: () => {},
    get busy() {
      return stage.busy;
    },
    async step() {
      const startedAtMs = systemClock.nowMs();
      for (const outcome of await stage.step()) {
        if (outcome.error !== undefined) reply.failed(outcome.job.id, outcome.error);
        else reply.done(outcome.job.id, { ...outcome.encoded, startedAtMs });
      }
    },
    release: () => models.closeAll(),
  };
}

async function openTextModel(device: Device, files: TextEncodeFiles): Promise<TextModel & Releasable> {
  const { textEncoders, textDigest: digest, zeroEmptyNegative } = files;
  const towers: (TextTower & { readonly encoder: Releasable })[] = [];
  const release = async () => {
    for (const { encoder } of towers) await encoder.release();
  };
  try {
    for (const { tokenizerDir, ...encoder } of textEncoders) {
      const reader = await openPromptReader(tokenizerDir);
      towers.push({ reader, encoder: await device.openTextEncoder(encoder) });
    }
  } catch (error) {
    await release();
    throw error;
  }
  return {
    towers,
    digest,
    zeroEmptyNegative,
    get weightsBytes() {
      return towers.reduce((sum, { encoder }) => sum + encoder.weightsBytes, 0);
    },
    release,
  };
}
