// In place of postgres.js's own test.js, which ends with the first failure: a line of JSON for each test.
import util from 'util'

export const nt = () => {}
export const ot = (...rest) => t(...rest)
t.timeout = 5

let before = Promise.resolve()
let waiting = 0

export function t(name, options, fn) {
  typeof options !== 'object' && (fn = options, options = {})
  waiting++
  before = before.then(() => run(name, (options.timeout || t.timeout) * 1000, fn)).then(tell => {
    console.log(JSON.stringify(tell))
    --waiting || process.exit()
  })
}

async function run(name, within, fn) {
  let timer
  const late = new Promise((resolve, reject) => timer = setTimeout(() => reject(new Error('Timed out')), within))
  try {
    const [expected, got] = await Promise.all(await Promise.race([late, fn()]))
    return expected === got ? [name, 'passed', ''] : [name, 'failed', util.inspect(expected) + ' != ' + util.inspect(got)]
  } catch (error) {
    return [name, 'failed', util.inspect(error)]
  } finally {
    clearTimeout(timer)
  }
}

process.on('uncaughtException', error => console.error(error))
process.on('unhandledRejection', error => console.error(error))
