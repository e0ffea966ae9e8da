import { setImmediate as nextTurn } from "node:timers/promises";
import { parentPort, type Transferable, workerData } from "node:worker_threads";
import { invariant } from "@atelier/core";
import { type FromThread, failureOf, type ToThread } from "./messages.ts";
import type { OpenedNetwork } from "./model-networks.ts";

/** How a stage's loop answers. */
export interface Reply<Result, Report> {
  done(id: string, result: Result, transfer?: readonly Transferable[]): void;
  failed(id: string, error: unknown): void;
  report(report: Report): void;
}

/** A stage as its thread drives it. It opens without models; they come and go while others run. */
export interface HostedStage<Work, Command, Files> {
  /** @throws ServingError naming what could not be opened; nothing of the model is then open. */
  openModel(files: Files): Promise<OpenedNetwork>;
  /** Nothing of the model is in the stage. Without effect where it is not open. */
  closeModel(model: string): Promise<void>;
  /** @throws ServingError when the work cannot be taken. */
  enqueue(id: string, work: Work): void;
  cancel(id: string): void;
  command(command: Command): void;
  /** True while `step()` has something to do. */
  readonly busy: boolean;
  /** One turn; answers through the reply. */
  step(): Promise<void>;
  release(): Promise<void>;
}

/**
 * The life of a stage's thread: open, then one turn after another for as long as there is work, asleep otherwise.
 * Messages are taken between turns; models are opened and closed beside them. Ends by itself after "close"; it must not be terminated from outside, since
 * onnxruntime aborts the process when a thread dies in the middle of a run.
 *
 * Anything but a ServingError that rises from a turn is a bug, and ends the thread with an error.
 */
export async function hostStage<Open, Work, Result, Command, Report, Files extends { readonly model: string }>(
  open: (options: Open, reply: Reply<Result, Report>) => HostedStage<Work, Command, Files>,
): Promise<void> {
  invariant(parentPort !== null, "a stage runs in a worker thread");
  const port = parentPort;
  const post = (message: FromThread<Result, Report>, transfer: readonly Transferable[] = []) =>
    port.postMessage(message, transfer);
  const reply: Reply<Result, Report> = {
    done: (id, result, transfer) => post({ type: "done", id, result }, transfer),
    failed: (id, error) => post({ type: "failed", id, failure: failureOf(error) }),
    report: (report) => post({ type: "report", report }),
  };

  let stage: HostedStage<Work, Command, Files>;
  try {
    stage = open(workerData as Open, reply);
  } catch (error) {
    post({ type: "not-opened", failure: failureOf(error) });
    return;
  }

  let closing = false;
  let wake = () => {};
  const hear = (message: ToThread<Work, Command, Files>) => {
    switch (message.type) {
      case "open-model": {
        const { model } = message.files;
        stage.openModel(message.files).then(
          (network) => post({ type: "model-opened", model, network }),
          (error: unknown) => post({ type: "model-not-opened", model, failure: failureOf(error) }),
        );
        break;
      }
      case "close-model":
        // A release that fails is a bug, and rises as an unhandled rejection: it ends the thread.
        void stage.closeModel(message.model).then(() => post({ type: "model-closed", model: message.model }));
        break;
      case "work":
        try {
          stage.enqueue(message.id, message.work);
        } catch (error) {
          reply.failed(message.id, error);
        }
        break;
      case "cancel":
        stage.cancel(message.id);
        break;
      case "command":
        stage.command(message.command);
        break;
      case "close":
        closing = true;
        break;
    }
  };
  port.on("message", (messages: readonly ToThread<Work, Command, Files>[]) => {
    messages.forEach(hear);
    wake();
  });
  post({ type: "opened" });

  while (!closing) {
    if (stage.busy) {
      await stage.step();
      await nextTurn();
    } else {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  }
  await stage.release();
  port.close();
}
