// In place of postgres.js's own bootstrap.js: roles and databases are there already.
import { spawnSync } from 'child_process'

export function exec(command, words) {
  spawnSync(command, words, { env: { ...process.env, PGPORT: process.env.SUITE_SERVER_PORT } })
}
