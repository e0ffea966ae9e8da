/** An expected failure of a command: its message is all that the user needs, and the process ends with `exitCode`. */
export class CliError extends Error {
  override readonly name = "CliError";
  /** 1: it did not work; 2: it was asked for in a way that cannot work. */
  readonly exitCode: number;
  /** A server that was there said no, and would say so again. */
  readonly refused: boolean;

  constructor(
    message: string,
    { exitCode = 1, cause, refused = false }: { exitCode?: 1 | 2; cause?: unknown; refused?: boolean } = {},
  ) {
    super(message, cause === undefined ? undefined : { cause });
    this.exitCode = exitCode;
    this.refused = refused;
  }
}
