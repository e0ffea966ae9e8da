import { Deadline, systemClock } from "@atelier/core";
import { type DeviceSpec, type NetworkFiles, openDevice } from "../device/device.ts";
import { openPromptReader } from "../prompt-reader.ts";
import { type TextEncoded, type TextEncodeLimits, TextEncodeStage } from "../stages/text-encode.ts";
import { ModelNetworks } from "./model-networks.ts";
import { type HostedStage, hostStage, type Reply } from "./stage-host.ts";

export interface TextEncodeData {
  readonly device: DeviceSpec;
  readonly limits: TextEncodeLimits;
}

export interface TextEncodeFiles extends NetworkFiles {
  readonly tokenizerDir: string;
  readonly digest: string;
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
  const models = new ModelNetworks(async ({ tokenizerDir, digest, ...files }: TextEncodeFiles) => {
    const reader = await openPromptReader(tokenizerDir);
    const encoder = await opener.openTextEncoder(files);
    return {
      reader,
      encoder,
      digest,
      get weightsBytes() {
        return encoder.weightsBytes;
      },
      release: () => encoder.release(),
    };
  });
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
