"""Variable names that an option cannot have, since Ansible uses them itself (ansible-core 2.19).

Most cannot begin with a role's name; but a role named `become` would own `become_user`, one named `role` `role_path`.
"""

_KEYWORDS = """
action always any_errors_fatal args async async_val become become_exe become_flags become_method become_user block
changed_when check_mode collections connection cycler debugger delay delegate_facts delegate_to dict diff environment
fact_path failed_when force_handlers gather_facts gather_subset gather_timeout handlers hosts ignore_errors
ignore_unreachable joiner lipsum local_action lookup loop loop_control loop_with max_fail_percentage module_defaults
name namespace no_log notify now omit order poll port post_tasks pre_tasks q query range register remote_user rescue
retries roles run_once serial strategy tags tasks throttle timeout undef until vars vars_files vars_prompt when
"""
_MAGIC = """
group_names groups hostvars inventory_dir inventory_file inventory_hostname inventory_hostname_short play_hosts
playbook_dir role_name role_names role_path role_uuid discovered_interpreter_python item environment
"""

RESERVED = frozenset((_KEYWORDS + _MAGIC).split())
