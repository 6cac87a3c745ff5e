// Continue prompts with an exported model in Node.js, without a server.
//
//     node generate.js served/docs/1 "The string module " "A list is"
//
// It needs @tensorflow/tfjs-node built with a TensorFlow of 2.13 or later: README.md of
// this folder says how. What `npm install` brings is TensorFlow 2.9, which fails with
// "Op type not registered 'DisableCopyOnRead'", an operation that each SavedModel has
// since. Neither has tensorflow-text's operations, so the model must have a
// CharacterTokenizer.

const tf = require('@tensorflow/tfjs-node');

const CONTROLS = {
  max_new_tokens: [16, 'int32'], // at most what the export allows
  temperature: [0.8, 'float32'], // 0 is greedy
  top_k: [40, 'int32'], // 0 for no limit
  top_p: [1.0, 'float32'], // 1 for no limit
};

async function main(folder, prompts) {
  const model = await tf.node.loadSavedModel(folder, ['serve'], 'generate');
  const inputs = {
    prompt: tf.tensor1d(prompts, 'string'),
    // each prompt has a seed of its own, or equal prompts would get equal texts
    seed: tf.range(0, prompts.length, 1, 'int32'),
  };
  // none may be left out: a SavedModel's signature has no defaults
  for (const [name, [value, dtype]] of Object.entries(CONTROLS)) {
    inputs[name] = tf.fill([prompts.length], value, dtype);
  }
  const outputs = model.predict(inputs);
  const texts = await outputs.text.data();
  const reasons = await outputs.finish_reason.data();
  prompts.forEach((prompt, i) => {
    console.log(`${prompt}${texts[i]} [${reasons[i]}]`);
  });
  model.dispose();
}

const [folder, ...prompts] = process.argv.slice(2);
if (!folder || prompts.length === 0) {
  console.error('Usage: node generate.js VERSION_FOLDER PROMPT...');
  process.exit(2);
}
main(folder, prompts).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
