import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["packages/**/*.test.ts", "services/**/*.test.ts", "test/**/*.test.ts", "proto/**/*.test.ts"],
    // Suites of their own, which want much brought first: `npm run test:control-plane`, `test:images`, `test:keda`.
    exclude: ["**/node_modules/**", "test/control-plane/**", "test/images/**", "test/keda/**"],
    // Worker processes and ONNX sessions are heavy; two files at a time suit a 2-core machine.
    maxWorkers: 2,
    pool: "forks",
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
});
