package server

import (
	"fmt"
	"strings"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

const ipcName = "IPC$"

// tree is a share that a session has connected to.
type tree struct {
	id     uint32
	share  *share
	access uint32 // maximal
}

// Access masks of whole shares.
const (
	accessAll      uint32 = 0x001F01FF
	accessReadOnly uint32 = 0x001200A9
)

// treeConnect handles TREE_CONNECT. [MS-SMB2] 3.3.5.7
func (r *request) treeConnect() (ntstatus.Status, error) {
	c, sn := r.c, r.sess
	if c.dialect == wire.Dialect311 && r.w.transform == nil && r.hdr.Flags&wire.FlagSigned == 0 && !r.rel {
		return 0, fmt.Errorf("TREE_CONNECT neither signed nor encrypted: %w", errProtocol)
	}
	req, err := wire.ParseTreeConnectRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter, nil
	}
	rest, ok := strings.CutPrefix(req.Path, `\\`)
	if !ok {
		return ntstatus.InvalidParameter, nil
	}
	host, name, ok := strings.Cut(rest, `\`)
	if !ok || host == "" || strings.Contains(name, `\`) {
		return ntstatus.InvalidParameter, nil
	}
	sh := c.srv.shares[foldName(name)]
	if sh == nil {
		return ntstatus.BadNetworkName, nil
	}
	if sh.cfg.Encrypt && sn.sealer == nil {
		return ntstatus.AccessDenied, nil
	}
	t := &tree{share: sh, access: accessAll}
	resp := wire.TreeConnectResponse{ShareType: wire.ShareTypeDisk, ShareFlags: wire.ShareFlagNoCaching}
	if sh.ipc {
		resp.ShareType = wire.ShareTypePipe
	}
	if sh.cfg.ReadOnly {
		t.access = accessReadOnly
	}
	if sh.cfg.Encrypt {
		resp.ShareFlags |= wire.ShareFlagEncryptData
	}
	if sh.cfg.CA && c.dialect >= wire.Dialect300 {
		resp.Capabilities |= wire.ShareCapContinuousAvailability
	}
	resp.MaximalAccess = t.access
	sn.mu.Lock()
	if len(sn.trees) >= c.srv.lim.MaxTrees {
		sn.mu.Unlock()
		return ntstatus.InsufficientResources, nil
	}
	for {
		sn.nextTree++
		if _, used := sn.trees[sn.nextTree]; !used && sn.nextTree != 0 && sn.nextTree != ^uint32(0) {
			break
		}
	}
	t.id = sn.nextTree
	sn.trees[t.id] = t
	sn.mu.Unlock()
	r.tree = t
	r.setBody(resp.Append(r.body()))
	return ntstatus.Success, nil
}

// treeDisconnect handles TREE_DISCONNECT. [MS-SMB2] 3.3.5.8
func (r *request) treeDisconnect() ntstatus.Status {
	if wire.ParseEmptyRequest(r.msg) != nil {
		return ntstatus.InvalidParameter
	}
	sn := r.sess
	sn.mu.Lock()
	delete(sn.trees, r.tree.id)
	sn.mu.Unlock()
	sn.closeOpens(r.tree)
	r.c.srv.settled()
	r.setBody(wire.AppendEmptyResponse(r.body()))
	return ntstatus.Success
}
