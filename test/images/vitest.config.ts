import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    root: `${import.meta.dirname}/../..`,
    include: ["test/images/**/*.test.ts"],
    // One Docker, which has the images: one after another.
    maxWorkers: 1,
    pool: "forks",
    testTimeout: 120_000,
    hookTimeout: 1_800_000, // the first run makes base images and builds Docker Compose
  },
});
