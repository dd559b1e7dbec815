// What an application does with OpenAI's JavaScript client and with the Vercel AI SDK.
//
//     node contract.mjs http://127.0.0.1:8000/v1 KEY openai openai-6 ... ai-7 ...
//
// The names are those of package.json. Exits with 1 and a line per failure.
import assert from "node:assert/strict";
import { createReadStream, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { deflateSync } from "node:zlib";

const [base, key, ...wanted] = process.argv.slice(2);
const model = "flux.2-dev-turbo";

function crc(data) {
  let value = -1;
  for (const byte of data) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  }
  return (value ^ -1) >>> 0;
}

function png(width, height) {
  const chunk = (kind, data) => {
    const body = Buffer.concat([Buffer.from(kind), data]);
    const ends = Buffer.alloc(8);
    ends.writeUInt32BE(data.length, 0);
    ends.writeUInt32BE(crc(body), 4);
    return Buffer.concat([ends.subarray(0, 4), body, ends.subarray(4)]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2, 0, 0, 0], 8);
  const rows = Buffer.alloc(height * (1 + 3 * width));
  const parts = [chunk("IHDR", header), chunk("IDAT", deflateSync(rows)), chunk("IEND", Buffer.alloc(0))];
  return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), ...parts]);
}

const sizeOf = (data) => `${Buffer.from(data).readUInt32BE(16)}x${Buffer.from(data).readUInt32BE(20)}`;
const file = join(tmpdir(), `pixelroute-source-${process.pid}.png`);
writeFileSync(file, png(64, 64));

async function openaiChecks(name) {
  const { default: OpenAI, toFile } = await import(name);
  const client = new OpenAI({ baseURL: base, apiKey: key });
  const streams = name !== "openai-4"; // which knows no streams of pictures
  return {
    async generate() {
      const answer = await client.images.generate({ model, prompt: "a mountain", size: "1024x1024", n: 2 });
      assert.equal(answer.data.length, 2);
      const picture = await fetch(answer.data[0].url);
      assert.equal(picture.headers.get("content-type"), "image/png");
      assert.equal(sizeOf(await picture.arrayBuffer()), "1024x1024");
      assert.ok(answer._request_id);
    },
    async generateBase64() {
      const answer = await client.images.generate({ model, prompt: "a", size: "512x512", response_format: "b64_json" });
      assert.equal(sizeOf(Buffer.from(answer.data[0].b64_json, "base64")), "512x512");
    },
    async editOne() {
      const image = await toFile(png(64, 64), "source.png");
      const answer = await client.images.edit({ model, image, prompt: "add stars", size: "1024x1024" });
      assert.equal(sizeOf(Buffer.from(answer.data[0].b64_json, "base64")), "1024x1024");
    },
    async editSeveral() {
      const image = [await toFile(png(64, 64), "a.png"), await toFile(png(32, 32), "b.png")];
      assert.ok((await client.images.edit({ model, image, prompt: "x" })).data[0].url);
    },
    async editFromAReadStream() {
      // sent chunked, without a length, as application/octet-stream
      const answer = await client.images.edit({ model, image: createReadStream(file), prompt: "x" });
      assert.ok(answer.data[0].url);
    },
    async variation() {
      const image = await toFile(png(64, 64), "source.png");
      assert.ok((await client.images.createVariation({ model: "sandbox-variations", image })).data[0].url);
    },
    async models() {
      const names = [];
      for await (const one of client.models.list()) names.push(one.id);
      assert.ok(names.includes(model));
      const pinned = names.find((one) => one.includes("/"));
      // version 4 puts the slash into the path as it is, the later ones encode it
      assert.equal((await client.models.retrieve(pinned)).id, pinned);
    },
    async stream() {
      if (!streams) return;
      const kinds = [];
      const stream = await client.images.generate({ model: "gpt-image-2", prompt: "a", stream: true, partial_images: 1 });
      for await (const event of stream) kinds.push(event.type);
      assert.equal(kinds.at(-1), "image_generation.completed");
    },
    async errors() {
      const wrong = client.images.generate({ model: "no-such-model", prompt: "a" });
      await assert.rejects(wrong, (error) => error.status === 404 && error.code === "model_not_found");
      const size = client.images.generate({ model, prompt: "a", size: "0x0" });
      await assert.rejects(size, (error) => error.status === 400 && error.param === "size");
      const down = client.images.generate({ model: "sandbox-down", prompt: "a" });
      await assert.rejects(down, (error) => error.status === 502 && error.code === "all_providers_failed");
    },
  };
}

async function aiChecks(name) {
  const version = name.split("-")[1];
  const ai = await import(name);
  const generateImage = ai.generateImage ?? ai.experimental_generateImage;
  const { createOpenAI } = await import(`ai-openai-${version}`);
  const { createOpenAICompatible } = await import(`ai-compatible-${version}`);
  const openai = createOpenAI({ baseURL: base, apiKey: key });
  const compatible = createOpenAICompatible({ name: "pixelroute", baseURL: base, apiKey: key });
  const image = (provider, id) => (provider.imageModel ?? provider.image)(id);
  const checks = {};
  for (const [kind, provider] of Object.entries({ openai, compatible })) {
    checks[`${kind}Generate`] = async () => {
      const answer = await generateImage({ model: image(provider, model), prompt: "a mountain", size: "1024x1024", n: 2 });
      assert.equal(answer.images.length, 2);
      assert.equal(sizeOf(answer.images[0].uint8Array), "1024x1024");
    };
    if (Number(version) > 5) {
      checks[`${kind}Edit`] = async () => {
        const prompt = { text: "add stars", images: [png(64, 64)] };
        const answer = await generateImage({ model: image(provider, model), prompt, size: "1024x1024" });
        assert.equal(sizeOf(answer.images[0].uint8Array), "1024x1024");
      };
    }
    checks[`${kind}Error`] = async () => {
      const wrong = generateImage({ model: image(provider, "no-such-model"), prompt: "a", maxRetries: 0 });
      await assert.rejects(wrong, /does not exist/);
    };
  }
  return checks;
}

let failed = 0;
for (const name of wanted) {
  const checks = await (name.startsWith("openai") ? openaiChecks(name) : aiChecks(name));
  let passed = 0;
  for (const [title, run] of Object.entries(checks)) {
    try {
      await run();
      passed++;
    } catch (error) {
      failed++;
      console.log(`${name}: ${title} failed\n${error.stack}`);
    }
  }
  console.log(`${name}: ${passed} of ${Object.keys(checks).length} passed`);
}
process.exit(failed ? 1 : 0);
