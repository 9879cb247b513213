// Package channels tests sessions of the SMB client that have several connections, durable opens, and sessions that expire, against our server and Samba's,
// over a network that loses, delays and cuts.
package channels
