// Reads a qcow2 from standard input as Xen Orchestra does, front to back, and writes its disk as a sparse raw image.
//
//     node qcow2_stream.mjs NODE_FOLDER OUT.raw <disk.qcow2
//
// NODE_FOLDER is where `npm ci` installed package.json.

import { open } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [folder, target] = process.argv.slice(2)
const installed = createRequire(`${folder}/package.json`)
const { QcowStream } = await import(pathToFileURL(installed.resolve('@xen-orchestra/qcow2')))

const disk = new QcowStream(process.stdin)
await disk.init()
const size = disk.getVirtualSize()
const output = await open(target, 'wx')
await output.truncate(size)
let blocks = 0
for await (const { index, data } of disk.diskBlocks()) {
  const offset = index * disk.getBlockSize()
  await output.write(data, 0, Math.min(data.length, size - offset), offset)
  blocks += 1
}
await output.close()
if (blocks !== disk.getBlockIndexesCount()) {
  throw new Error(`${blocks} blocks were read of ${disk.getBlockIndexesCount()}`)
}
console.log(`${size} bytes, ${blocks} blocks`)
