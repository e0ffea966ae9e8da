import { type ErrorCode, ServingError, toServingError } from "@atelier/core";

import type { OpenedNetwork } from "./model-networks.ts";

/** What a stage's thread hears, in lists: what was said at one time. */
export type ToThread<Work, Command, Files> =
  | { readonly type: "open-model"; readonly files: Files }
  | { readonly type: "close-model"; readonly model: string }
  | { readonly type: "work"; readonly id: string; readonly work: Work }
  | { readonly type: "cancel"; readonly id: string }
  | { readonly type: "command"; readonly command: Command }
  | { readonly type: "close" };

/** What a stage's thread says. Each piece of work is answered once: done or failed. So is each model, opened or closed. */
export type FromThread<Result, Report> =
  | { readonly type: "opened" }
  | { readonly type: "not-opened"; readonly failure: Failure }
  | { readonly type: "model-opened"; readonly model: string; readonly network: OpenedNetwork }
  | { readonly type: "model-not-opened"; readonly model: string; readonly failure: Failure }
  | { readonly type: "model-closed"; readonly model: string }
  | { readonly type: "done"; readonly id: string; readonly result: Result }
  | { readonly type: "failed"; readonly id: string; readonly failure: Failure }
  | { readonly type: "report"; readonly report: Report };

/** A ServingError as plain data: structured clone keeps neither its class nor its fields. */
export interface Failure {
  readonly code: ErrorCode;
  readonly message: string;
  readonly field: string | undefined;
}

export function failureOf(error: unknown): Failure {
  const { code, detail, field } = toServingError(error);
  return { code, message: detail, field };
}

export function errorOf({ code, message, field }: Failure): ServingError {
  return new ServingError(code, message, { field });
}
