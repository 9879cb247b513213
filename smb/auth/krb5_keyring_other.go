//go:build !linux

package auth

func readKeyring(name string) (*ccache, error) {
	return nil, kerberosErrorf("the ticket cache KEYRING:%s cannot be read here: use FILE:… in KRB5CCNAME", name)
}
