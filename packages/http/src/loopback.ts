/** Whether a host, an address or a URL's hostname is this machine's loopback, which no other machine can reach. */
export function isLoopback(host: string): boolean {
  return /^(localhost|\[?::1\]?|(::ffff:)?127\.\d+\.\d+\.\d+)$/i.test(host);
}
