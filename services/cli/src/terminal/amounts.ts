/** "45 s", "12 min", "3 h 20 min", "2 d 4 h". */
export function duration(ms: number): string {
  const seconds = Math.ceil(ms / 1_000);
  if (seconds < 90) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** "1,234,567". */
export const grouped = (count: number): string => count.toLocaleString("en");

/** "12.3 MiB". */
export function size(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = bytes / 1024;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value.toFixed(1)} ${units[unit]}`;
}

/** "4.20 EUR"; of small sums as many digits as say something. */
export function money(amount: number, currency: string): string {
  const digits = amount === 0 || amount >= 0.1 ? 2 : Math.min(6, 2 + Math.ceil(-Math.log10(amount)));
  return `${amount.toFixed(digits)} ${currency}`;
}
