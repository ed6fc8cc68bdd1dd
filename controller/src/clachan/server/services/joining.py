"""How a machine becomes a node: join tokens, the first certificate, its renewal and its end."""

import hmac
import secrets
import uuid
from datetime import UTC, datetime

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from clachan.contract.api import (
    Joined,
    JoinRequest,
    JoinTokenDeclaration,
    JoinTokenView,
    Page,
    VmToken,
    VmTokenDeclaration,
)
from clachan.server import ca, clock
from clachan.server.db.models import Certificate, Instance, JoinToken, Node, Supply, Tenant
from clachan.server.decisions import addresses
from clachan.server.decisions.inventory import host_name_problem
from clachan.server.services import clusters, removal, standings
from clachan.server.services.controller import Change, Controller
from clachan.server.services.pages import Wanted
from clachan.server.services.principals import Principal, token_hash
from clachan.server.services.refusals import Conflict, Forbidden, Invalid, NotFound, Unauthenticated

FINGERPRINT_CHARS = 32
VM_TOKEN_SECONDS = 3600


def list_join_tokens(controller: Controller, wanted: Wanted) -> Page[JoinTokenView]:
    with controller.read() as session:
        return wanted.page(session, select(JoinToken), JoinToken.id, join_token_view)


def create_join_token(controller: Controller, declaration: JoinTokenDeclaration) -> JoinTokenView:
    """The only answer that has the token itself: `<start of the CA's fingerprint>.<random>`."""
    problem = host_name_problem(declaration.node)
    if problem is not None:
        raise Invalid(problem, "node")
    with controller.change() as change:
        row, text = _new_token(controller, change, declaration.node, declaration.seconds)
        row.owner, row.labels = _owner(change.session, declaration), dict(declaration.labels)
        clusters.check_links(controller, change.session, row.node, row.owner is not None, declaration.links)
        row.links = declaration.links
        change.event("join_token_made", f"join token for node {row.node}", node=row.node)
        return join_token_view(row).model_copy(update={"token": text})


def _new_token(controller: Controller, change: Change, node: str, seconds: int) -> tuple[JoinToken, str]:
    text = f"{controller.authority.fingerprint[:FINGERPRINT_CHARS]}.{secrets.token_urlsafe(32)}"
    row = JoinToken(id=str(uuid.uuid4()), hash=token_hash(text), node=node, labels={}, created=change.now)
    row.expires = clock.after(seconds)
    change.session.add(row)
    return row, text


def create_vm_token(controller: Controller, principal: Principal, wanted: VmTokenDeclaration, dry: bool) -> VmToken:
    """The token of a VM for the node that hosts it; `dry`: only say whether the generation has joined.

    A token that is asked for again replaces the former one. Another generation ends the former identity at once.
    """
    with controller.change() as change:
        instance = _hosted_vm(change.session, principal, wanted.instance)
        name = f"vm_{instance.id.replace('-', '')[:12]}"
        node = change.session.scalar(select(Node).where(Node.vm_id == instance.id))
        if node is not None and node.generation == wanted.generation:
            if node.state == "revoked":
                raise Conflict(f"node {name}: revoked, expected another generation of its VM", "generation")
            return VmToken(node=name, joined=True)
        if dry:
            return VmToken(node=name, joined=False)
        unused = (JoinToken.vm_id == instance.id) & JoinToken.fingerprint.is_(None)
        change.session.execute(delete(JoinToken).where(unused))
        if node is not None and node.generation is not None:
            _end_generation(controller, change, node, instance)
        row, text = _new_token(controller, change, name, VM_TOKEN_SECONDS)
        row.owner_id, row.vm_id, row.generation = instance.tenant_id, instance.id, wanted.generation
        made = f"join token for the VM {instance.path}, asked for by node {principal.name}"
        change.event("join_token_made", made, tenant=instance.tenant.name, node=name, path=instance.path)
        return VmToken(node=name, joined=False, token=text, expires=row.expires)


def _hosted_vm(session: Session, principal: Principal, path: str) -> Instance:
    instance = session.scalar(select(Instance).where(Instance.path == path))
    if instance is None or instance.node_id != principal.id:
        raise NotFound(f"instance {path}: not on node {principal.name}, expected one that it hosts", "instance")
    software, state = instance.revision.software, instance.revision.state
    if not software.meta.get("makes_node"):
        raise Conflict(f"instance {path}: {software.fqcn} makes no node, expected a VM", "instance")
    if state != "started":
        raise Conflict(f"instance {path}: wanted {state}, expected started", "instance")
    return instance


def _end_generation(controller: Controller, change: Change, node: Node, vm: Instance) -> None:
    """The VM is built anew: its former identity ends at once, and what ran inside begins again."""
    node.state, node.generation = "joining", None
    _revoke_certificates(change, node)
    begin = {"applied": {}, "observed": "waiting", "message": ""}
    change.session.execute(update(Supply).where(Supply.node_id == node.id).values(begin))
    inside = list(change.session.scalars(select(Instance).where(Instance.node_id == node.id)).unique())
    for instance in inside:
        standings.begin_again(change, instance)
    standings.refresh(controller, change, inside)
    text = f"node {node.name}: its VM is built anew, its former identity is revoked"
    change.event("node_rebuilt", text, tenant=vm.tenant.name, node=node.name, path=vm.path)
    standings.heard_of_vm(controller, change, vm.id)


def delete_join_token(controller: Controller, identifier: str) -> None:
    with controller.change() as change:
        row = change.session.get(JoinToken, identifier)
        if row is None:
            raise NotFound(f"join token {identifier}: unknown, expected one that exists")
        change.session.delete(row)


def join_token_view(row: JoinToken) -> JoinTokenView:
    return JoinTokenView(
        id=row.id,
        node=row.node,
        owner=row.owner.name if row.owner is not None else None,
        created=row.created,
        expires=row.expires,
        used=row.fingerprint is not None,
    )


def join(controller: Controller, request: JoinRequest) -> Joined:
    """A certificate for the machine that has the token. Again with the same key: the same certificate."""
    try:
        key = ca.key_digest(ca.request_key(request.csr))
    except ca.RequestError as error:
        raise Invalid(str(error), "csr") from error
    with controller.change() as change:
        token = _valid_token(change, request)
        if token.fingerprint is not None:
            known = change.session.get(Certificate, token.fingerprint)
            if known is None or known.key != key or known.revoked is not None:
                raise Conflict("join token: used with another key, expected a new token", "token")
            return _joined(controller, known.node, known.pem)
        node = _admit(change, token)
        _revoke_certificates(change, node)
        certificate = _certify(controller, change, node, request.csr)
        token.fingerprint = certificate.fingerprint
        owner = token.owner.name if token.owner is not None else None
        change.event("node_joined", f"node {node.name} joined", tenant=owner, node=node.name)
        return _joined(controller, node, certificate.pem)


def renew(controller: Controller, principal: Principal, csr: str) -> Joined:
    """Another certificate for a node that has a valid one. The former ends by itself."""
    with controller.change() as change:
        node = change.session.get(Node, principal.id)
        if node is None or node.state == "revoked":
            raise Unauthenticated("certificate: unknown or revoked, expected that of a node")
        try:
            key = ca.key_digest(ca.request_key(csr))
            return _joined(controller, node, _renewed(controller, change, node, csr, key).pem)
        except ca.RequestError as error:
            raise Invalid(str(error), "csr") from error


def revoke(controller: Controller, name: str) -> None:
    """End a node's identity at once. What it holds stays placed on it, except what was wanted absent."""
    with controller.change() as change:
        node = change.session.scalar(select(Node).where(Node.name == name))
        if node is None:
            raise NotFound(f"node {name}: unknown, expected one that joined")
        node.state = "revoked"
        clusters.touch_other_ends(change, node)
        _revoke_certificates(change, node)
        for instance in change.session.scalars(select(Instance).where(Instance.node_id == node.id)).unique():
            if instance.revision.state == "absent":
                removal.remove_tree(change, instance)
        change.touch_node(node.id)
        change.capacity = True
        change.event("node_revoked", f"node {name} revoked", node=name)


def _owner(session: Session, declaration: JoinTokenDeclaration) -> Tenant | None:
    if declaration.owner is None:
        return None
    tenant = session.scalar(select(Tenant).where(Tenant.name == declaration.owner))
    if tenant is None:
        raise Invalid(f"tenant {declaration.owner}: unknown, expected one that exists", "owner")
    return tenant


def _valid_token(change: Change, request: JoinRequest) -> JoinToken:
    digest = token_hash(request.token)
    token = change.session.scalar(select(JoinToken).where(JoinToken.hash == digest))
    if token is None or not hmac.compare_digest(token.hash, digest):
        raise Unauthenticated("join token: unknown, expected one that is valid", "token")
    if token.expires <= change.now:
        raise Unauthenticated(f"join token: expired at {token.expires}, expected a fresh one", "token")
    if token.node != request.node:
        raise Forbidden(f"join token: not for node {request.node}, expected the name that it was made for", "node")
    vm = change.session.get(Instance, token.vm_id) if token.vm_id is not None else None
    if vm is not None and vm.revision.state != "started":
        raise Forbidden(f"join token: its VM {vm.path} is wanted {vm.revision.state}, expected started", "token")
    return token


def _admit(change: Change, token: JoinToken) -> Node:
    """The node of the token: new, or the one of that name, which keeps its id, addresses and instances."""
    node = change.session.scalar(select(Node).where(Node.name == token.node))
    if node is None:
        number = _free_number(change.session) if token.vm_id is None else _vm_number(change.session, token.vm_id)
        node = Node(id=str(uuid.uuid4()), name=token.node, number=number, created=change.now)
        node.owner_id, node.labels, node.reach, node.links = token.owner_id, token.labels, None, token.links
        node.vm_id = token.vm_id
        change.session.add(node)
    elif node.owner_id != token.owner_id:
        raise Conflict(f"node {node.name}: exists with another owner, expected the same or another name", "node")
    elif node.vm_id != token.vm_id:
        raise Conflict(f"node {node.name}: is a VM, expected the token that its host asks for", "node")
    node.generation = token.generation
    node.labels = {**node.labels, **token.labels}
    node.links = token.links or node.links
    node.state = "joining"
    node.applied = {}
    change.session.execute(update(Supply).where(Supply.node_id == node.id).values(applied={}))
    change.session.flush()
    clusters.touch_other_ends(change, node)
    change.touch_node(node.id)
    return node


def _free_number(session: Session) -> int:
    taken = set(session.scalars(select(Node.number)))
    number = next((number for number in range(addresses.NODES) if number not in taken), None)
    if number is None:
        raise Conflict(f"nodes: {addresses.NODES} have addresses, expected fewer")
    return number


def _vm_number(session: Session, vm_id: str) -> int:
    vm = session.get_one(Instance, vm_id)
    assert vm.node is not None
    assert vm.slot_index is not None
    return addresses.vm_number(vm.node.number, vm.slot_index)


def _certify(controller: Controller, change: Change, node: Node, csr: str) -> Certificate:
    try:
        issued = controller.authority.sign_node(csr, node.name, controller.settings.certificate_days)
    except ca.RequestError as error:
        raise Invalid(str(error), "csr") from error
    row = Certificate(
        fingerprint=issued.fingerprint,
        node_id=node.id,
        key=issued.key,
        pem=issued.pem,
        issued=change.now,
        expires=clock.text(issued.expires),
    )
    change.session.add(row)
    change.session.flush()
    return row


def _renewed(controller: Controller, change: Change, node: Node, csr: str, key: str) -> Certificate:
    """A renewal that was lost on the way and is repeated gives the certificate that was already made."""
    query = select(Certificate).where(Certificate.node_id == node.id, Certificate.revoked.is_(None))
    newest = change.session.scalar(query.where(Certificate.key == key).order_by(Certificate.expires.desc()).limit(1))
    if newest is not None and _young(newest):
        return newest
    change.event("certificate_renewed", f"node {node.name} renewed its certificate", node=node.name)
    return _certify(controller, change, node, csr)


def _young(certificate: Certificate) -> bool:
    begin, end = clock.parse(certificate.issued), clock.parse(certificate.expires)
    return datetime.now(UTC) < begin + (end - begin) / 3


def _revoke_certificates(change: Change, node: Node) -> None:
    query = update(Certificate).where(Certificate.node_id == node.id, Certificate.revoked.is_(None))
    change.session.execute(query.values(revoked=change.now))
    change.principals = True
    change.topics |= {f"node:{node.id}", f"questions:{node.id}"}


def _joined(controller: Controller, node: Node, certificate: str) -> Joined:
    platform = controller.platform.id
    return Joined(node=node.name, id=node.id, certificate=certificate, ca=controller.authority.pem, platform=platform)
