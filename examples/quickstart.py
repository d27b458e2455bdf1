"""From a model file to a result: float, bit-exact golden machine, and the generated Verilog in Verilator."""

from edgemoe import api

model = api.load_model("nano")  # or a model file: docs/model-file.md
program = api.compile(model, hardware="nano")  # formats, descriptors, memory image
images = [api.load_image(f"nano:{i}", model) for i in range(4)]  # or .npy and .png files

for task, name in enumerate(model.config.tasks):
    for image in images:
        floating = api.reference(model, image, task)["logits"]
        golden = api.golden(program, image, task)["logits"]
        print(
            f"task {name}: float {floating.argmax()}, golden {golden.argmax()}, error {abs(floating - golden).max():.3f}"
        )

runs = api.simulate(program, images, tasks=model.config.tasks)  # all tasks, no reset in between
checked = api.check(program, images, model.config.tasks, runs)
for task, run in enumerate(runs):
    classes = [int(api.outputs(program, run, i, task)["logits"].argmax()) for i in range(len(images))]
    print(
        f"task {model.config.tasks[task]}: gateware {classes}, {run.cycles // len(images)} cycles per image"
    )
print(f"{checked.tensors} tensors compared, {checked.mismatches} values differ")
