// Package client is an NBD client: an export of any server as a disk, with many requests in flight on one connection or, if the server allows it, several.
//
// It speaks the fixed newstyle negotiation with NBD_OPT_GO, structured replies and the metadata context base:allocation where the server has them, and simple replies
// where it has not. It was written from the protocol's specification and knows nothing of the server in package nbd. Every length that a server sends is bounded
// before it is used.
package client
