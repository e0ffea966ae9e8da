import { readFileSync } from "node:fs";

/** The most memory that a process had resident so far, in bytes; NaN where the system does not tell. */
export function peakMemoryBytes(pid: number): number {
  try {
    const kibibytes = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    return Number(kibibytes) * 1024;
  } catch {
    return Number.NaN;
  }
}

/** Processor seconds that it has used. */
export function processorSeconds(pid: number): number {
  try {
    // Fields 14 and 15, counted from behind the program's name: user and system time in hundredths of a second.
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
      .replace(/^.*\) /, "")
      .split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  } catch {
    return Number.NaN;
  }
}
