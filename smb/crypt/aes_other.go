//go:build !amd64 || purego

package crypt

const canFuse = false

func expandKey(rounds int, key, xk *byte)              { panic("crypt: no fused AES") }
func cbcMACBlocks(rounds int, xk, mac, p *byte, n int) { panic("crypt: no fused AES") }
func ccmBlocks(rounds int, xk, mac, counter, p *byte, n int, open uint32) {
	panic("crypt: no fused AES")
}
