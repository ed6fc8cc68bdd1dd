from clachan.contract.software import Capacity, SoftwareMeta
from clachan.server.decisions import Problem
from clachan.server.decisions.argument_spec import compile_role
from clachan.server.decisions.capacity import capacity, problems

META = SoftwareMeta.model_validate(
    {
        "title": "x",
        "capacity": {"memory_mib": 7, "cpu_milli": 50, "tasks": 9},
        "options": {"vm_memory_mib": {"minimum": 64}, "vm_cpus": {"minimum": 1}},
        "capacity_from": {
            "memory_mib": {"option": "vm_memory_mib"},
            "cpu_milli": {"option": "vm_cpus", "factor": 1000},
        },
    }
)
OPTIONS = {"vm_memory_mib": {"type": "int", "default": 512}, "vm_cpus": {"type": "int", "required": True}}
SCHEMA = compile_role("acme.tools.vm", {"main": {"options": OPTIONS}}, META)["main"]


def test_what_is_taken_is_what_the_parameters_say():
    assert capacity(META, SCHEMA, {"vm_cpus": 2}) == Capacity(memory_mib=512, cpu_milli=2000, tasks=9)
    assert capacity(META, SCHEMA, {"vm_cpus": 1, "vm_memory_mib": 64}) == Capacity(
        memory_mib=64, cpu_milli=1000, tasks=9
    )
    plain = META.model_copy(update={"capacity_from": {}})
    assert capacity(plain, SCHEMA, {"vm_cpus": 2}) == plain.capacity


def test_what_says_it_is_no_reference():
    reference = {"from": "home.x", "key": "cpus"}
    assert problems(META, {"vm_cpus": 2}) == []
    assert problems(META, {"vm_cpus": reference}) == [
        Problem("parameters.vm_cpus", "parameter vm_cpus: a reference, expected a number: it says what is taken")
    ]
