// One call of the AI SDK, told in JSON on standard input; the pictures that come of it are printed as one line of JSON.
//
//   node ai.mjs PROVIDER BASE_URL < {"model": "stub", "prompt": "a cat" | {"text", "images": [PATH], "mask": PATH}, ...}
import fs from "node:fs";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [provider, baseURL] = process.argv.slice(2);
const { model, prompt, ...options } = JSON.parse(fs.readFileSync(0, "utf8"));
const settings = { baseURL, apiKey: "none" };
const made = {
  openai: () => createOpenAI(settings).image(model),
  compatible: () => createOpenAICompatible({ name: "replicast", ...settings }).imageModel(model),
}[provider]();
const read = (path) => path && fs.readFileSync(path);
const asked =
  typeof prompt === "string" ? prompt : { ...prompt, images: prompt.images.map(read), mask: read(prompt.mask) };

try {
  const { images, usage } = await generateImage({ model: made, prompt: asked, maxRetries: 0, ...options });
  const data = images.map(({ base64, mediaType }) => ({ b64_json: base64, mediaType }));
  console.log(JSON.stringify({ answer: { data, usage } }));
} catch (error) {
  const { name, statusCode, message, responseBody } = error;
  console.log(JSON.stringify({ error: { kinds: [name], status: statusCode, message, body: responseBody } }));
}
