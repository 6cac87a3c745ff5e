"""A decoding step on PyTorch: recorded once, and compiled where that pays.

Python running Keras's layers takes half of the time of a step on a CPU, and PyTorch's
many small operations much of the rest. So the first steps of each shape just run, then
one is recorded as a graph of tensor operations, which is replayed; and of a model that
is large enough the graph becomes C++ code, where a C++ compiler is.
"""

import itertools
import warnings

import optree
import torch

_STEPS_BEFORE_RECORDING = 16  # recording takes as long as some dozens of steps
_STEPS_BEFORE_COMPILING = 64  # the first time it takes as long as some hundreds
_READS_BEFORE_COMPILING = 2**30  # weights times steps: small models need more steps
_ROWS_AT_ONCE = 8
_MM = torch.ops.aten.mm.default
_PRODUCTS = (
    _MM,
    torch.ops.aten._weight_int8pack_mm.default,
    torch.ops.aten._weight_int4pack_mm_for_cpu.default,
)


def record_step(function):
    """`function(*trees)`, which becomes a recording, and that a compiled one."""
    steps = {}

    def step(*trees):
        leaves, structure = optree.tree_flatten(trees)
        kind = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if kind not in steps:
            steps[kind] = _Step(function)
        return steps[kind](trees, leaves, structure)

    return step


class _Step:
    """The step of one structure and set of shapes."""

    def __init__(self, function):
        self.function = function
        self.count = 0
        self.graph = self.result = self.compiled_from = None

    def __call__(self, trees, leaves, structure):
        self.count += 1
        if self.count <= _STEPS_BEFORE_RECORDING:
            return self.function(*trees)
        if self.graph is None:
            self.graph, self.result = _record(self.function, leaves, structure)
            self.compiled_from = _first_compiled_step(self.graph, leaves)
        if self.count == self.compiled_from:
            self.graph = _compile(self.graph)
        return optree.tree_unflatten(self.result, self.graph(*leaves))


def _record(function, leaves, structure):
    """The graph from leaves to leaves, and the structure of what it returns."""
    from torch.fx.experimental.proxy_tensor import make_fx

    result = None

    def flat(*leaves):
        nonlocal result
        leaves, result = optree.tree_flatten(
            function(*optree.tree_unflatten(structure, leaves))
        )
        return leaves

    return make_fx(flat)(*leaves), result


def _first_compiled_step(graph, leaves):
    """Which step to compile at, `None` for never."""
    size = sum(weight.numel() for weight in [*graph.parameters(), *graph.buffers()])
    if size == 0 or any(leaf.device.type != "cpu" for leaf in leaves):
        return None
    return max(_STEPS_BEFORE_COMPILING, _READS_BEFORE_COMPILING // size)


def _compile(graph):
    """The graph in C++, or as it is where that can't be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own modules cause some
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
            return compile_regions(graph, compile_region)
        except exc.InvalidCxxCompiler:
            return graph
        except Exception as error:  # noqa: BLE001 (the recording serves as well)
            reason = error
    warnings.warn(f"PyTorch couldn't compile a decoding step: {reason}", stacklevel=2)
    return graph


def compile_region(region, inputs):
    """The function in C++ that does what a `torch.fx.GraphModule` does with inputs."""
    from torch._inductor import config, standalone_compile

    # threads, or processes are started, and stay; asserts take a tenth of a step
    with config.patch(compile_threads=1, size_asserts=False):
        return standalone_compile(region, inputs, dynamic_shapes="from_example_inputs")


def compile_regions(graph, compile_region):
    """The graph, cut at the products that repeat, and each kind of piece compiled.

    The layers of a model do the same with other weights: one of them is compiled, and
    not the graph, which would take as many times as long as there are layers.

    Args:
        graph: A recorded `torch.fx.GraphModule`.
        compile_region: From a piece of it, a `GraphModule` whose inputs are all that
            it reads, and examples of these, to a function of them.
    """
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    starts = [i for i, node in enumerate(calls) if node.target in _PRODUCTS]
    pieces = _cut(calls, starts)
    kinds = [_Region(piece).kind for piece in pieces]
    most = max(kinds[1:], key=kinds.count, default=None)
    starts = [at for at, kind in zip(starts, kinds[1:], strict=True) if kind == most]

    compiled, calls_of_regions = {}, []
    for piece in _cut(calls, starts):
        region = _Region(piece)
        if region.kind not in compiled:
            compiled[region.kind] = compile_region(region.module(), region.examples())
        call = compiled[region.kind], region.inputs, region.outputs
        calls_of_regions.append(call)
    weights = {
        node: getattr(graph, node.target)
        for node in graph.graph.nodes
        if node.op == "get_attr"
    }
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    results = [_origin(node) for node in graph.graph.output_node().args[0]]

    def run(*leaves):
        values = dict(zip(placeholders, leaves, strict=True)) | weights
        for call, inputs, outputs in calls_of_regions:
            new = call(*[values[node] for node in inputs])
            values.update(zip(outputs, new, strict=True))
        return [values[node] for node in results]

    return run


def _cut(calls, starts):
    """`calls` in pieces, of which all but the first begin at one of `starts`."""
    bounds = [0, *starts, len(calls)]
    return [calls[a:b] for a, b in itertools.pairwise(bounds)]


class _Region:
    """A piece of a graph.

    Args:
        nodes: The piece, in order.

    Attributes:
        inputs: The nodes before it that it reads.
        outputs: Those of its own that are read after it.
        kind: Equal for two pieces that do the same with other inputs.
    """

    def __init__(self, nodes):
        self.nodes = nodes
        inside = {node: i for i, node in enumerate(nodes)}
        outside = {}

        def name(node):
            if node in inside:
                return "inside", inside[node]
            node = _origin(node)
            place = outside.setdefault(node, len(outside))
            value = node.meta["val"]
            return "input", place, value.shape, value.stride(), value.dtype

        calls = [
            (node.target, torch.fx.map_arg((node.args, node.kwargs), name))
            for node in nodes
        ]
        self.inputs = list(outside)
        self.outputs = [
            node
            for node in nodes
            if _origin(node) is node and any(user not in inside for user in node.users)
        ]
        self.kind = str((calls, [inside[node] for node in self.outputs]))

    def module(self):
        """It alone, from its inputs to its outputs."""
        graph = torch.fx.Graph()
        made = {
            node: graph.placeholder(f"input_{i}") for i, node in enumerate(self.inputs)
        }
        for node in self.nodes:
            copy = graph.node_copy(
                node, lambda node: made.get(node, made[_origin(node)])
            )
            made[node] = copy
            copy.target = _AS_SUMS.get(node.target, node.target)
        graph.output(tuple(made[node] for node in self.outputs))
        return torch.fx.GraphModule({}, graph)

    def examples(self):
        """Tensors like those that it reads."""
        values = [node.meta["val"] for node in self.inputs]
        return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in values]


def _origin(node):
    """The node whose tensor this one is, after it was changed in place."""
    schema = getattr(node.target, "_schema", None)
    return _origin(node.args[0]) if schema and schema.is_mutable else node


def _multiply(x, kernel):
    """`x` `(b, input)` times `kernel` `(input, output)`, as sums if it is one row.

    The loops that the compiler makes of these read the kernel in the order in which
    memory holds it, as fast as memory is; the libraries' products of one row take
    half as long again.
    """
    dtype, (inputs, outputs) = x.dtype, kernel.shape
    is_turned = kernel.t().is_contiguous()
    has_blocks = kernel.is_contiguous() and inputs % _ROWS_AT_ONCE == 0
    if x.shape[0] > 1 or not (is_turned or has_blocks):
        return torch.mm(x, kernel)
    x = x.as_strided((inputs,), (1,)).float()  # unlike `view` it is computed before
    if is_turned:
        product = (kernel.t().float() * x).sum(1)
    else:
        kernel = kernel.view(-1, _ROWS_AT_ONCE, outputs).float()
        product = (kernel * x.view(-1, _ROWS_AT_ONCE, 1)).sum(1).sum(0)
    return product.to(dtype)[None]


def _multiply_heads(x, y):
    """`x` `(k, n, i)` times `y` `(k, i, o)`, of each head, as sums.

    The compiler's loops take half of the time of the library's product.
    """
    if y.stride(1) == 1:
        return (y.transpose(1, 2)[:, None] * x[:, :, None]).sum(3)
    return (y[:, None] * x[..., None]).sum(2)


_AS_SUMS = {_MM: _multiply, torch.ops.aten.bmm.default: _multiply_heads}
