import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    root: `${import.meta.dirname}/../..`,
    include: ["test/control-plane/**/*.test.ts"],
    // A control plane takes a gigabyte and a half: one after another.
    maxWorkers: 1,
    pool: "forks",
    testTimeout: 180_000,
    hookTimeout: 2_400_000, // the first run builds Kubernetes
  },
});
